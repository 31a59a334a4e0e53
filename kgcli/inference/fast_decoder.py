"""Faster arithmetic of a decoder: convolutions with channels last, and compiled networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kgcli.model.diffusion import Diffusion


@contextmanager
def channels_last(decoder: Diffusion, wanted: bool = True) -> Iterator[None]:
    """Hold the weights of U-Net and VAE with channels last within a context: faster for more than one image.

    Only the order in memory changes, which rounds sums differently.
    """
    if not wanted:
        yield
        return
    _lay_out(decoder, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(decoder, torch.contiguous_format)


def compile_decoder(decoder: Diffusion) -> None:
    """Compile U-Net and VAE decoder on their first use, for good; each size of image and batch is compiled anew.

    Forward functions are compiled, not modules: hooks, which ControlNets act through, stay outside.
    """
    for part in (decoder.unet, decoder.vae.decoder):
        part.forward = torch.compile(part.forward, dynamic=False)


def _lay_out(decoder: Any, layout: torch.memory_format) -> None:
    for part in (decoder.unet, decoder.vae):
        part.to(memory_format=layout)

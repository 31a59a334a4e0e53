"""A check for generated images: one with NaN or infinity is refused, never written or scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kgcli.errors import NotFiniteError


@contextmanager
def finite_images(vae: Any) -> Iterator[None]:
    """Check everything that a VAE decodes, before pixels are clamped and rounded.

    Raises: NotFiniteError.
    """
    handle = vae.decoder.register_forward_hook(_check)
    try:
        yield
    finally:
        handle.remove()


def _check(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise NotFiniteError(
            "the generated image holds NaN or infinity and was not kept: try --dtype float32 (or bfloat16), another "
            "--decoder, or a smaller --lora scale"
        )

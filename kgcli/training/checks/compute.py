"""Floating-point operations of a training step, counted by torch on the stage's own modules on the meta device.

A backward pass costs a part once its forward pass for the gradient of its input, and once for those of its weights;
of a frozen part with nothing trained before it, neither. Activations computed twice cost a forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kgcli.recipe import Recipe
from kgcli.training.stages.base import Stage
from kgcli.weights.meta import on_meta

# Assumed of a sample where the data are not at hand: tokens in the MLLM, and images.
ASSUMED = {"pretrain": (120.0, 1.0), "align": (20.0, 0.0), "align_images": (150.0, 2.0), "instruct": (150.0, 2.0)}


@dataclass(frozen=True)
class SampleSize:
    """Mean sizes of a sample."""

    tokens: float
    images: float


@dataclass(frozen=True)
class Cost:
    """FLOPs of one part of a step, per sample."""

    part: str
    forward: float
    backward: float


@dataclass(frozen=True)
class Trained:
    """How much of a part's weights trains."""

    fraction: float
    reach: float  # fraction of the weights in and behind the first layer that trains


def count_step(stage: Stage, recipe: Recipe, size: SampleSize, trained: dict[str, Trained]) -> list[Cost]:
    """Return the costs of a sample in the parts that take part in a stage of the paper.

    Args:
        stage: on the meta device, with no parameter that requires a gradient
        trained: of each part, by `find_trained`
    """
    costs: list[Cost] = []
    reached = False  # the graph reaches this part's input
    for name, times, run in _chain(stage, size):
        forward = times * _count(run)
        own = trained.get(name, Trained(0.0, 0.0))
        backward = forward * (own.fraction + (1.0 if reached else own.reach))
        if backward and name.split(".")[0] in recipe.activation_checkpointing:
            backward += forward
        costs.append(Cost(name, forward, backward))
        reached = reached or own.reach > 0
    return costs


def _chain(stage: Any, size: SampleSize) -> list[tuple[str, float, Callable[[], Any]]]:
    """Return the parts in the order of computation, how many times each runs for a sample, and one call of it."""
    model = stage.model
    cfg = model.cfg
    num_tokens = max(1, round(size.tokens))
    num_patches = 1 + (cfg.vision.image_size // cfg.vision.patch_size) ** 2

    def mask() -> torch.Tensor:
        return torch.ones(1, num_tokens, dtype=torch.bool)

    def hidden(length: int = num_tokens, width: int = cfg.mllm.width) -> torch.Tensor:
        return torch.empty(1, length, width)

    side = cfg.vision.image_size
    chain = [
        ("vision", size.images, lambda: model.vision(torch.empty(1, 3, side, side))),
        ("resampler", size.images, lambda: model.resampler(hidden(num_patches, cfg.vision.width))),
        ("mllm", 1.0, lambda: model.mllm(hidden(), mask())),
    ]
    name = stage.setup.stage
    if name == "pretrain":
        return [*chain, ("logits", 1.0, lambda: model.mllm.logits(hidden()))]
    chain.append(("aligner.encoder", 1.0, lambda: model.aligner.encoder(hidden(), mask())))
    conditioning = cfg.aligner.num_queries, cfg.aligner.width
    if stage.text is not None:  # captions are padded to all of its positions
        tokens = stage.text.config.max_position_embeddings
        chain = [("text", 1.0, lambda: stage.text(torch.zeros(1, tokens, dtype=torch.long))), *chain]
    if name == "align":
        chain = [part for part in chain if part[0] not in ("vision", "resampler")]
        if model.aligner.decoder is not None:
            chain.append(("aligner.decoder", 1.0, lambda: model.aligner.decode(hidden(*conditioning), num_tokens)))
    if name in ("align", "align_images"):
        return chain
    latent = stage.setup.image_size // stage.diffusion.pixels_per_latent
    channels = stage.diffusion.unet.config.in_channels
    unet = stage.diffusion.unet
    return [
        *chain,
        ("unet", 1.0, lambda: unet(torch.empty(1, channels, latent, latent), torch.empty(1), hidden(*conditioning))),
    ]


def _count(run: Callable[[], Any]) -> float:
    with on_meta(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def find_trained(stage: Any) -> dict[str, Trained]:
    """Return what trains of the linear layers and convolutions of each part; they hold nearly all of the work."""
    model = stage.model
    halves = {"aligner.encoder": model.aligner.encoder, "aligner.decoder": model.aligner.decoder}
    parts = {"vision": model.vision, "resampler": model.resampler, "mllm": model.mllm, **halves}
    found = {name: _trained_of(part) for name, part in parts.items() if part is not None}
    return {**found, "logits": found["mllm"]}


def _trained_of(part: nn.Module) -> Trained:
    layers = [layer.weight for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    whole = sum(weight.numel() for weight in layers)
    first = next((place for place, weight in enumerate(layers) if weight.requires_grad), len(layers))
    return Trained(
        fraction=sum(weight.numel() for weight in layers if weight.requires_grad) / whole,
        reach=sum(weight.numel() for weight in layers[first:]) / whole,
    )

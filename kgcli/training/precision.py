"""The arithmetic of a training step: forward passes in fp32, bf16 or fp16, with weights and sums in fp32."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kgcli.errors import ConfigError
from kgcli.recipe import Recipe

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the scaler of losses that keeps gradients of fp16 in its range; others are not scaled."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def plain_attention(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Use plain attention on a CPU, where it is several times faster in bf16 at small head sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def check_sharded_scalars(stage: nn.Module, recipe: Recipe) -> None:
    """Check that a recipe's precision allows for its stage's scalars, which `parallel: fsdp2` does not shard.

    Args:
        stage: with its trained parameters marked

    Raises: ConfigError.
    """
    scalars = [name for name, p in stage.named_parameters() if p.requires_grad and p.ndim == 0]
    if recipe.precision == "fp16" and recipe.parallel == "fsdp2" and scalars:
        raise ConfigError(
            f"stage {recipe.stage} trains a scalar ({scalars[0]}), which precision fp16 cannot combine with "
            "parallel fsdp2 on several processes; use precision bf16, or parallel ddp"
        )

"""The precision of a training step: forward passes in fp32, bf16 or fp16, with weights and sums in fp32."""

from __future__ import annotations

import contextlib

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the scaler of losses that keeps gradients of fp16 in its range; others are not scaled."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")

"""Parameter groups and the learning-rate schedule; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from kgcli.recipe import OptimConfig


def make_optimizer(named: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig) -> AdamW:
    """AdamW over the parameters that train; vectors (norms, biases) are not decayed."""
    trained = [p for _, p in named if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def lr_at(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """The learning rate of `step` (from 0): warm-up, a plateau, then the fall to 0 over the last steps."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    start = num_steps * (1.0 - cfg.decay_fraction)
    gone = min(1.0, max(0.0, (step - start) / max(1.0, num_steps - start)))
    fall = {"constant": 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1.0 + math.cos(math.pi * gone))}[cfg.schedule]
    return cfg.lr * warm * fall

"""Parameter groups, AdamW and Muon, and the learning-rate schedule; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from kgcli.recipe import OptimConfig
from kgcli.training.dtensors import like, whole

MIN_MATRIX = 12  # rows and columns below which a weight is not orthogonalised
EMBEDDINGS = ("embedding", "positions", "position_table")  # parts of the names of tables, whose rows are vectors
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Source: K. Jordan et al., "Muon" (2024)
NUM_NEWTON_SCHULZ = 5


class Muon(Optimizer):
    """Muon for weights that are matrices (convolutions flattened), AdamW for all others, in one optimizer.

    Groups hold `kind` "muon" or "adamw", and `lr_ratio` to the rate of the schedule. Matrices of one shape are
    orthogonalised together. torch.optim.Muon takes no convolutions.
    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that lets
    one rate serve with AdamW is that of "Muon is scalable for LLM training" (arXiv:2502.16982).
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"kind": "adamw", "lr": 1e-3, "lr_ratio": 1.0, "weight_decay": 0.0})
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes its gradients itself"
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            update(group, [p for p in group["params"] if p.grad is not None])

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(_matrix_shape(parameter), []).append(parameter)
        for shape, alike in by_shape.items():
            # Each process orthogonalises whole matrices, sharded ones too, and keeps its part of the result.
            directions = torch.stack([whole(self._direction(parameter)).reshape(shape) for parameter in alike])
            updates = orthogonalise(directions) * (0.2 * max(shape) ** 0.5)
            for parameter, update in zip(alike, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(like(update.reshape(parameter.shape), parameter), alpha=-group["lr"])

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Return the gradient with Nesterov momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
        return parameter.grad.lerp(state["momentum"], self.momentum)

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        first, second = group["betas"]
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - first)
            state["square"].lerp_(parameter.grad.square(), 1 - second)
            num = float(state["step"])
            scale = (state["square"] / (1 - second**num)).sqrt_().add_(group["eps"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first**num))


def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Return matrices with the same singular vectors, and singular values near 1.

    The Newton-Schulz iteration runs on the small Gram matrix X X' alone: the same result for a fraction of the products
    where a matrix is wide, as those of convolutions are.

    Shapes: N matrices of R rows and C columns
    """
    if matrices_NRC.shape[1] > matrices_NRC.shape[2]:
        return orthogonalise(matrices_NRC.mT).mT
    a, b, c = NEWTON_SCHULZ
    matrices_NRC = matrices_NRC / (matrices_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram_NRR = matrices_NRC @ matrices_NRC.mT
    identity_RR = torch.eye(gram_NRR.shape[1], dtype=gram_NRR.dtype, device=gram_NRR.device)
    product_NRR = identity_RR
    for iteration in range(NUM_NEWTON_SCHULZ):
        factor_NRR = a * identity_RR + b * gram_NRR + c * gram_NRR @ gram_NRR
        product_NRR = factor_NRR @ product_NRR if iteration else factor_NRR
        if iteration < NUM_NEWTON_SCHULZ - 1:
            gram_NRR = factor_NRR @ gram_NRR @ factor_NRR
    return product_NRR @ matrices_NRC


def make_optimizer(named: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig) -> Optimizer:
    """Return AdamW over the parameters that train, with `muon_lr` Muon for the matrices; vectors are not decayed."""
    trained = [(name, p) for name, p in named if p.requires_grad]
    if cfg.muon_lr is None:
        groups: list[dict[str, Any]] = [
            {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
            {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = len({isinstance(p, DTensor) for _, p in trained}) == 1  # it takes no mixture
        return AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused, foreach=False if not fused else None)
    matrices = [p for name, p in trained if is_matrix(name, p)]
    known = set(map(id, matrices))
    rest = [p for _, p in trained if id(p) not in known]
    shared = {"lr": cfg.lr, "betas": cfg.betas, "eps": cfg.eps}
    groups = [
        {"params": matrices, "kind": "muon", "lr_ratio": cfg.muon_lr / cfg.lr, "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Muon([{**shared, **group} for group in groups if group["params"]])


def lr_at(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Return the learning rate of `step` (from 0): warm-up, a plateau, then the fall to 0 over the last steps."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    start = num_steps * (1.0 - cfg.decay_fraction)
    gone = min(1.0, max(0.0, (step - start) / max(1.0, num_steps - start)))
    fall = {"constant": 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1.0 + math.cos(math.pi * gone))}[cfg.schedule]
    return cfg.lr * warm * fall


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon takes a parameter: not a vector, a table or a small matrix."""
    if parameter.ndim < 2 or any(word in name for word in EMBEDDINGS):
        return False
    return min(_matrix_shape(parameter)) >= MIN_MATRIX


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of a weight; a convolution's are its output channels and all else."""
    return parameter.shape[0], parameter.numel() // parameter.shape[0]

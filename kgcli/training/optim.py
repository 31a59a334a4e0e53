"""Parameter groups, AdamW and Muon, and the learning-rate schedule; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from kgcli.recipe import OptimConfig
from kgcli.training.dtensors import like, local, whole

MIN_MATRIX = 12  # rows and columns below which a weight is not orthogonalised
EMBEDDINGS = ("embedding", "positions", "position_table")  # parts of the names of tables, whose rows are vectors
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Source: K. Jordan et al., "Muon" (2024)
NUM_NEWTON_SCHULZ = 5


class Muon(Optimizer):
    """Muon for weights that are matrices (convolutions flattened), AdamW for all others, in one optimizer.

    Groups hold `kind` "muon" or "adamw", and `lr_ratio` to the rate of the schedule. All is done to lists of tensors at
    once: with a call for each, a GPU waits for the processor. torch.optim.Muon takes no convolutions.
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
        if not parameters:
            return
        # Each process orthogonalises whole matrices, sharded ones too, and keeps its part of the result.
        updates = orthogonalise([d.reshape(_matrix_shape(d)) for d in self._directions(parameters)])
        updates = list(torch._foreach_mul(updates, [0.2 * max(update.shape) ** 0.5 for update in updates]))
        weights = [local(parameter) for parameter in parameters]
        parts = [local(like(u.reshape(p.shape), p)) for p, u in zip(parameters, updates, strict=True)]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        # Apart, as one pair of other strides (channels last) would make the whole list go one by one.
        for alike in (True, False):
            pairs = [(w, u) for w, u in zip(weights, parts, strict=True) if (w.stride() == u.stride()) == alike]
            if pairs:
                torch._foreach_add_([w for w, _ in pairs], [u for _, u in pairs], alpha=-group["lr"])

    def _directions(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return the whole gradients with Nesterov momentum."""
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        parts = [local(momentum) for momentum in momenta], [local(gradient) for gradient in gradients]
        torch._foreach_lerp_(*parts, 1 - self.momentum)
        if any(isinstance(gradient, DTensor) for gradient in gradients):
            return [whole(g.lerp(momentum, self.momentum)) for g, momentum in zip(gradients, momenta, strict=True)]
        return list(torch._foreach_lerp(gradients, momenta, self.momentum))

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        by_step: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            by_step.setdefault(float(state["step"]), []).append(parameter)
        for num, alike in by_step.items():
            self._adamw_step(group, alike, num)

    def _adamw_step(self, group: dict[str, Any], parameters: list[nn.Parameter], num: float) -> None:
        """Take the step of number `num` of these parameters."""
        first, second = group["betas"]
        weights = [local(parameter) for parameter in parameters]
        gradients = [local(cast(Tensor, parameter.grad)) for parameter in parameters]
        means, squares = ([local(self.state[p][name]) for p in parameters] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
        scales = torch._foreach_div(squares, 1 - second**num)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(weights, means, scales, value=-group["lr"] / (1 - first**num))


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return matrices with the same singular vectors, and singular values near 1.

    The Newton-Schulz iteration runs on the Gram matrix of the shorter side alone: the same result for a fraction of the
    products where a matrix is wide, as those of convolutions are. Matrices whose shorter sides are equal go through it
    together: a GPU takes longer to start hundreds of small products than to compute them.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place, matrix in enumerate(matrices):
        by_shape.setdefault(_sides(matrix), []).append(place)
    by_side: dict[int, list[tuple[list[int], Tensor]]] = {}
    for (side, _), places in by_shape.items():
        wide_NRC = torch.stack([m if len(m) == side else m.mT for m in (matrices[place] for place in places)])
        wide_NRC = wide_NRC / (wide_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
        by_side.setdefault(side, []).append((places, wide_NRC))
    found: dict[int, Tensor] = {}
    for groups in by_side.values():
        factors_NRR = _newton_schulz(torch.cat([wide_NRC @ wide_NRC.mT for _, wide_NRC in groups]))
        sizes = [len(places) for places, _ in groups]
        for (places, wide_NRC), part_NRR in zip(groups, factors_NRR.split(sizes), strict=True):
            found |= dict(zip(places, (part_NRR @ wide_NRC).unbind(), strict=True))
    return [found[place] if len(m) == len(found[place]) else found[place].mT for place, m in enumerate(matrices)]


def _newton_schulz(gram_NRR: Tensor) -> Tensor:
    """Return the factors by which to multiply matrices X that have these Gram matrices X X'."""
    a, b, c = NEWTON_SCHULZ
    product_NRR = gram_NRR
    for iteration in range(NUM_NEWTON_SCHULZ):
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        factor_NRR.diagonal(dim1=1, dim2=2).add_(a)
        product_NRR = factor_NRR @ product_NRR if iteration else factor_NRR
        if iteration < NUM_NEWTON_SCHULZ - 1:
            gram_NRR = factor_NRR @ gram_NRR @ factor_NRR
    return product_NRR


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


def _sides(matrix: Tensor) -> tuple[int, int]:
    """Return the shorter and the longer side."""
    return min(matrix.shape), max(matrix.shape)


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of a weight; a convolution's are its output channels and all else."""
    return parameter.shape[0], parameter.numel() // parameter.shape[0]

"""Formulas of LyCORIS: the weight change of each kind of adapter, computed in float32.

Shape letters: O I a layer's outputs and inputs, K its kernel (absent in a linear layer), R rank.

Source: LyCORIS (arXiv:2309.14859); the formulas are those of its library, the axis of DoRA's magnitudes too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_EPSILON = torch.finfo(torch.float32).eps  # LyCORIS adds it to the norms of a weight
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def loha_change(roles: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Return the Hadamard product of two low-rank matrices, and their rank."""
    first, second = (
        _tucker(roles[f"hada_t{n}"], roles[f"hada_w{n}_a"], roles[f"hada_w{n}_b"])
        if f"hada_t{n}" in roles
        else roles[f"hada_w{n}_a"] @ roles[f"hada_w{n}_b"]
        for n in (1, 2)
    )
    return first * second, roles["hada_w1_b"].shape[0]


def lokr_change(roles: Mapping[str, Tensor]) -> tuple[Tensor, int | None]:
    """Return the Kronecker product of two matrices, and the rank of a factored one, or None."""
    rank = None
    if "lokr_w1" in roles:
        first = roles["lokr_w1"]
    else:
        first, rank = roles["lokr_w1_a"] @ roles["lokr_w1_b"], roles["lokr_w1_b"].shape[0]
    if "lokr_w2" in roles:
        second = roles["lokr_w2"]
    elif "lokr_t2" in roles:
        second, rank = _tucker(roles["lokr_t2"], roles["lokr_w2_a"], roles["lokr_w2_b"]), roles["lokr_w2_b"].shape[0]
    else:
        second, rank = roles["lokr_w2_a"] @ roles["lokr_w2_b"], roles["lokr_w2_b"].shape[0]
    if second.ndim == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second), rank


def tucker_down(down: Tensor, mid: Tensor) -> Tensor:
    """Return the lower half of a convolution's LoRA in Tucker form, (R, I, K, K)."""
    return torch.einsum("rskl,si->rikl", mid, down[:, :, 0, 0])


def low_rank_change(down: Tensor, up: Tensor) -> Tensor:
    """Return up @ down in the shape (O, I) or (O, I, K, K)."""
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def decomposed_change(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """Return the weight change of DoRA: the changed weight scaled to the magnitudes, minus the weight.

    The magnitudes are of rows (O, 1, ...) or, in older files, of columns (1, I, ...).

    Source: DoRA (arXiv:2402.09353).
    """
    changed = weight + change
    rows = magnitude.shape[0] == weight.shape[0] and (magnitude.ndim == 1 or magnitude.shape[1] == 1)
    kept = 0 if rows else 1
    others = [axis for axis in range(weight.ndim) if axis != kept]
    norms = torch.linalg.vector_norm(changed, dim=others, keepdim=True) + _EPSILON
    return changed * (magnitude.reshape(norms.shape) / norms) - weight


def _tucker(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """Return (O, I, K, K) of a core (R, R, K, K) and the factors (R, O) and (R, I)."""
    return torch.einsum("ijkl,jr,ip->prkl", core, inputs, outputs)

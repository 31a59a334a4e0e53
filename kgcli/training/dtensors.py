"""Tensors that are sharded over processes (DTensors) and whole ones, handled alike."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory; call without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes, which all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor, equal on all processes, sharded as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    placed = tensor.to(parameter.device).contiguous()  # as sharded weights are; fused optimizers rely on it
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)

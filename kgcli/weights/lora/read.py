"""LoRA files read as changes of a U-Net: low-rank pairs for diffusers, and whole changes that no low rank can hold.

alpha / rank is folded into the weights in float32. A layer that is low-rank stays low-rank; all else (LoHa, LoKr,
differences of weights, biases and norms, DoRA in LyCORIS' names) becomes a whole change.

Shape letters: O I a layer's outputs and inputs, K its kernel (absent in a linear layer), R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights.lora.header import LoraHeader, LoraPlacement, shown
from kgcli.weights.lora.lycoris import LOHA, decomposed_change, loha_change, lokr_change, low_rank_change, tucker_down

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class LowRank:
    """A layer's low-rank LoRA, with DoRA's magnitudes (O,) if it has them."""

    down: Tensor  # (R, I, K, K) or (R, I)
    up: Tensor  # (O, R, 1, 1) or (O, R)
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class WholeChange:
    """The full change of a layer's weight and bias, in their shapes.

    With `magnitude`, `weight` is the change before DoRA's scaling, which needs the layer's own weight.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    def resolved(self, weight: Tensor) -> WholeChange:
        """Apply the magnitude, given the layer's own weight."""
        if self.magnitude is None or self.weight is None:
            return self
        return WholeChange(decomposed_change(weight.float(), self.weight, self.magnitude), self.bias)


@dataclass(frozen=True)
class LoraWeights:
    """All changes of a file to one U-Net, by layer, in float32."""

    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    whole: Mapping[str, WholeChange] = field(default_factory=dict)


def read_lora(header: LoraHeader, placement: LoraPlacement) -> LoraWeights:
    """Read the weights that belong to a U-Net.

    Raises:
        MissingError: the file cannot be read.
        IncompatibleError: a tensor does not fit its layer's shape, or its counterpart is missing.
    """
    low_rank: dict[str, LowRank] = {}
    whole: dict[str, WholeChange] = {}
    try:
        with safe_open(str(header.path), "pt") as file:
            for layer, roles in placement.layers.items():
                tensors = {role: _finite(header, name, file.get_tensor(name)) for role, name in roles.items()}
                parts = _LayerTensors(header, layer, placement.shapes[layer], tensors)
                change = parts.whole_change()
                if (pair := parts.low_rank()) is not None:
                    low_rank[layer] = pair
                if change.weight is not None or change.bias is not None:
                    whole[layer] = change
                if not {layer} & {*low_rank, *whole}:
                    raise parts.error(f"{' and '.join(tensors)} alone")
    except (OSError, SafetensorError) as error:
        raise MissingError(f"the LoRA file {header.path} cannot be read: {error}") from None
    if any(pair.magnitude is None for pair in low_rank.values()):
        # peft makes all layers of an adapter DoRA or none.
        whole |= {layer: _as_whole(pair) for layer, pair in low_rank.items() if pair.magnitude is not None}
        low_rank = {layer: pair for layer, pair in low_rank.items() if pair.magnitude is None}
    return LoraWeights(low_rank, whole)


class _LayerTensors:
    """One layer's tensors by role, and the changes computed from them."""

    def __init__(
        self, header: LoraHeader, layer: str, shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]
    ) -> None:
        self.header = header
        self.layer = layer
        self.shapes = shapes
        self.tensors = tensors

    def low_rank(self) -> LowRank | None:
        """Return the layer's LoRA with its scale in `up`, unless it is part of a whole change."""
        if "dora_scale" in self.tensors or not {"down", "up", "mid"} & set(self.tensors):
            return None
        down, up = self._factors()
        magnitude = self.tensors.get("magnitude")
        return LowRank(down, up, None if magnitude is None else self._fit(magnitude.flatten(), (len(up),), "magnitude"))

    def whole_change(self) -> WholeChange:
        """Return the change that a LoRA of diffusers cannot hold."""
        weight = _sum([*self._weight_changes(), *self._differences(("diff", "w_norm"), "weight")])
        biases = self._differences(("diff_b", "b_norm"), "bias")
        if "bias" in self.tensors:
            self._need(("down",))
            bias = self._fit(self.tensors["bias"], self._shape("weight")[:1], "bias")
            biases.append(self._scale(len(self.tensors["down"])) * bias)
        magnitude = self.tensors.get("dora_scale")
        if magnitude is not None and weight is None:
            raise self.error("a dora_scale alone")
        if magnitude is not None and magnitude.numel() not in self._shape("weight")[:2]:
            raise self.error(f"a dora_scale of the shape {list(magnitude.shape)}")
        return WholeChange(weight, _sum(biases), magnitude)

    def _differences(self, roles: tuple[str, ...], parameter: str) -> list[Tensor]:
        """Return the differences that the file stores directly."""
        found = [role for role in roles if role in self.tensors]
        return [self._fit(self.tensors[role], self._shape(parameter), role) for role in found]

    def _weight_changes(self) -> list[Tensor]:
        """Return the scaled products that are whole matrices."""
        kinds = {role.partition("_")[0] for role in self.tensors}
        changes = []
        if "hada" in kinds:
            self._need(LOHA)
            product, rank = self._computed(loha_change)
            changes.append(self._fit(product, self._shape("weight"), "LoHa") * self._scale(rank))
        if "lokr" in kinds:
            for n in (1, 2):
                self._need((f"lokr_w{n}",) if f"lokr_w{n}" in self.tensors else (f"lokr_w{n}_a", f"lokr_w{n}_b"))
            product, lokr_rank = self._computed(lokr_change)
            scale = 1.0 if lokr_rank is None else self._scale(lokr_rank)  # LyCORIS: whole factors have no alpha
            changes.append(self._fit(product, self._shape("weight"), "LoKr") * scale)
        if "dora_scale" in self.tensors and "down" in self.tensors:
            changes.append(low_rank_change(*self._factors()))
        return changes

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return down and up in the layer's shape, with the scale folded into up."""
        self._need(("down", "up"))
        down, up, shape = self.tensors["down"], self.tensors["up"], self._shape("weight")
        if "mid" in self.tensors:
            down = self._computed(lambda roles: tucker_down(roles["down"], roles["mid"]))
        rank = len(down)
        down = self._fit(down, (rank, *shape[1:]), "lora_down")
        up = self._fit(up, (shape[0], rank, *([1] * (len(shape) - 2))), "lora_up")
        return down, up * self._scale(rank)

    def _scale(self, rank: int) -> float:
        if "alpha" in self.tensors:
            if self.tensors["alpha"].numel() != 1 or rank == 0:
                raise self.error("an alpha that is not a number")
            return float(self.tensors["alpha"]) / rank
        return self.header.scale.of(self.layer, rank)

    def _computed(self, formula: Callable[[Mapping[str, Tensor]], T]) -> T:
        """Evaluate a formula. Raises: IncompatibleError for factors whose shapes do not match."""
        try:
            return formula(self.tensors)
        except (RuntimeError, IndexError):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in self.tensors.values())
            raise self.error(f"factors whose shapes do not match ({shapes[:80]})") from None

    def _shape(self, parameter: str) -> Shape:
        if parameter not in self.shapes:
            raise self.error(f"a change of its {parameter}, which the layer does not have")
        return self.shapes[parameter]

    def _fit(self, tensor: Tensor, shape: Shape, role: str) -> Tensor:
        """Reshape a tensor, keeping its outer dimension, to add or remove 1 x 1 kernels."""
        if tensor.numel() != math.prod(shape) or (tensor.ndim and tensor.shape[0] != shape[0]):
            raise self.error(f"{role} of the shape {list(tensor.shape)}, where {list(shape)} is needed")
        return tensor.reshape(shape)

    def _need(self, roles: tuple[str, ...]) -> None:
        for role in roles:
            if role not in self.tensors:
                raise self.error(f"no {role} beside its other tensors")

    def error(self, what: str) -> IncompatibleError:
        """Return an error with the file, the layer and the fault."""
        return IncompatibleError(
            f"the LoRA {shown(self.header.path.name)} does not fit this decoder: for {shown(self.layer)} it has {what}"
        )


def _sum(tensors: list[Tensor]) -> Tensor | None:
    return sum(tensors[1:], tensors[0]) if tensors else None


def _as_whole(pair: LowRank) -> WholeChange:
    return WholeChange(low_rank_change(pair.down, pair.up), magnitude=pair.magnitude)


def _finite(header: LoraHeader, name: str, tensor: Tensor) -> Tensor:
    """Raises: IncompatibleError."""
    tensor = tensor.to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise IncompatibleError(
            f"the LoRA {shown(header.path.name)} holds NaN or infinity in {shown(name)}; download it again"
        )
    return tensor

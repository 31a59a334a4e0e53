"""LoRA files on a U-Net: low-rank layers by diffusers and peft, full-rank changes by hooks, checked after loading.

A full-rank change is a second layer beside the first (a layer of a U-Net is linear in its weight and bias), so that the
U-Net is not overwritten and a LoRA acts only on the images that use it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kgcli.errors import IncompatibleError
from kgcli.weights.lora.header import LoraHeader, LoraPlacement, shown
from kgcli.weights.lora.read import LoraWeights, LowRank, WholeChange, read_lora

if TYPE_CHECKING:
    from kgcli.inference.adapters.named import Lora

UNET_PREFIX = "unet."
BASE_LAYER = ".base_layer"  # name of the layer inside peft's wrapper
_log = logging.getLogger(__name__)


class Loras:
    """The LoRA files of a diffusers pipeline's U-Net; each is loaded once and kept for later images."""

    def __init__(self, sd: Any) -> None:
        self.sd = sd
        self.unet = sd.unet
        self._low_rank: dict[str, bool] = {}  # adapter name -> True if peft holds a part of it
        self._whole: dict[str, dict[str, WholeChange]] = {}
        self._handles: list[RemovableHandle] = []

    def put_on(self, loras: Sequence[Lora]) -> None:
        """Activate these LoRAs on the U-Net, and no others.

        Raises: MissingError, IncompatibleError.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for lora in loras:
            if _adapter_name(lora) not in self._low_rank:
                self._load(lora)
        held = [lora for lora in loras if self._low_rank[_adapter_name(lora)]]
        if held:
            self.unet.enable_lora()
            self.unet.set_adapters([_adapter_name(lora) for lora in held], [lora.scale for lora in held])
        elif any(self._low_rank.values()):
            self.unet.disable_lora()
        for lora in loras:
            for layer, change in self._whole[_adapter_name(lora)].items():
                if lora.scale != 0:
                    hook = _Addition(self.unet.get_submodule(layer), change, lora.scale)
                    self._handles.append(self.unet.get_submodule(layer).register_forward_hook(hook))

    def _load(self, lora: Lora) -> None:
        header, name = lora.header, _adapter_name(lora)
        placement = header.place(unet_shapes(self.unet))
        weights = read_lora(header, placement)
        whole = {layer: self._resolved(header, layer, change) for layer, change in weights.whole.items()}
        if weights.low_rank:
            load_low_rank(self.sd, weights, name, header)
        self._whole[name], self._low_rank[name] = whole, bool(weights.low_rank)
        _report(header, placement)

    def _resolved(self, header: LoraHeader, layer: str, change: WholeChange) -> WholeChange:
        """Return a full-rank change in the U-Net's precision, DoRA resolved with the layer's own weight."""
        base = _base(self.unet.get_submodule(layer))
        if not isinstance(base, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
            raise IncompatibleError(
                f"the LoRA {shown(header.path.name)} changes {shown(layer)}, a {type(base).__name__}: not supported"
            )
        with align_module_device(base):
            change = change.resolved(base.weight.detach().cpu())
        device = base.weight.device if base.weight.device.type != "meta" else torch.device("cpu")
        return WholeChange(
            *(None if t is None else t.to(device, self.unet.dtype) for t in (change.weight, change.bias))
        )


@dataclass(frozen=True)
class _Addition:
    """A forward hook that adds the effect of a change of weight and bias to a layer's output."""

    layer: nn.Module
    change: WholeChange
    scale: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the layer's output with the change added."""
        x = args[0].to(output.device)
        weight, bias = (
            None if tensor is None else tensor.to(output.device, output.dtype)
            for tensor in (self.change.weight, self.change.bias)
        )
        base: Any = _base(self.layer)
        if weight is None:
            channels_last = isinstance(base, nn.Linear | nn.LayerNorm)
            assert bias is not None, "a change without weight has a bias"
            return output + self.scale * (bias if channels_last else bias.reshape(1, -1, *[1] * (output.ndim - 2)))
        if isinstance(base, nn.Linear):
            added = F.linear(x, weight, bias)
        elif isinstance(base, nn.Conv2d):
            added = base._conv_forward(x, weight, bias)
        elif isinstance(base, nn.LayerNorm):
            added = F.layer_norm(x, base.normalized_shape, weight, bias, base.eps)
        else:
            added = F.group_norm(x, base.num_groups, weight, bias, base.eps)
        return output + self.scale * added


def load_low_rank(sd: Any, weights: LoraWeights, name: str, header: LoraHeader) -> None:
    """Load low-rank layers into the U-Net by diffusers, and check that each has its values.

    Raises: IncompatibleError.
    """
    unet = sd.unet
    state = {
        f"{UNET_PREFIX}{layer}.{part}": tensor.to(unet.dtype)
        for layer, pair in weights.low_rank.items()
        for part, tensor in _peft_tensors(pair).items()
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several at once are intended
            # Raised for a file that does not fit and is removed again; each image activates its own adapters.
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
            sd.load_lora_into_unet(state, network_alphas=None, unet=unet, adapter_name=name, _pipeline=sd)
    except (ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0][:150]
        raise IncompatibleError(f"the LoRA {shown(header.path.name)} does not fit this decoder: {first}") from None
    wrong = sorted(set(state) ^ set(found := dict(_held_by_peft(unet, name))))
    wrong += [key for key in state if key in found and not torch.equal(found[key].flatten(), state[key].flatten())]
    if wrong:
        unet.delete_adapters(name)
        raise IncompatibleError(
            f"the LoRA {shown(header.path.name)} was not loaded correctly into the decoder: {len(wrong)} tensors "
            f"differ, such as {shown(wrong[0])}; diffusers or peft has an unsupported version"
        )


def unet_shapes(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a U-Net's own parameters, without peft's wrappers."""
    return {
        name.replace(BASE_LAYER, ""): tuple(parameter.shape)
        for name, parameter in unet.named_parameters()
        if ".lora_" not in name
    }


def _report(header: LoraHeader, placement: LoraPlacement) -> None:
    """Log the parts of a file that are not applied."""
    name = shown(header.path.name)
    if placement.left:
        _log.warning(
            "%s: %d of its %d U-Net tensors have no layer in this decoder and were not applied, such as %s",
            name, len(placement.left), len(header.parts), shown(placement.left[0]),
        )  # fmt: skip
    if header.text:
        _log.warning("%s also changes the text encoder, which KOSMOS-G replaces: that part was not applied", name)
    if header.embeddings:
        _log.warning(
            "%s also holds %d textual inversion tensors (bundle_emb), which KOSMOS-G does not support: not applied",
            name, len(header.embeddings),
        )  # fmt: skip


def _peft_tensors(pair: LowRank) -> dict[str, Tensor]:
    tensors = {"lora_A.weight": pair.down, "lora_B.weight": pair.up}
    if pair.magnitude is not None:
        shape = (-1,) if pair.down.ndim == 2 else (1, -1, 1, 1)
        tensors["lora_magnitude_vector"] = pair.magnitude.reshape(shape)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _held_by_peft(unet: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an adapter in peft's layers, of layers with scaling 1."""
    from peft.tuners.lora import LoraLayer

    for layer, module in unet.named_modules():
        if not isinstance(module, LoraLayer) or name not in module.lora_A or module.scaling[name] != 1:
            continue
        parts: dict[str, nn.Module] = {"lora_A": module.lora_A[name], "lora_B": module.lora_B[name]}
        if name in module.lora_magnitude_vector:
            parts["lora_magnitude_vector"] = module.lora_magnitude_vector[name]
        for part, holder in parts.items():
            with align_module_device(holder):
                for key, value in holder.named_parameters():
                    suffix = part if part == "lora_magnitude_vector" else f"{part}.{key}"
                    yield f"{UNET_PREFIX}{layer}.{suffix}", value.detach().cpu()


def _base(module: Any) -> Any:
    """Return the layer itself, without peft's wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _adapter_name(lora: Lora) -> str:
    # By content: torch allows no dots in a name, and two files may have the same name.
    return f"lora_{lora.source.sha256[:16]}"

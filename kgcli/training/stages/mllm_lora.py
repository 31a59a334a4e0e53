"""LoRA of the MLLM for `train: lora`: adapters beside its linear layers, merged weights, and files for peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from kgcli.errors import ConfigError
from kgcli.model.kosmosg import KosmosG
from kgcli.recipe import LoraConfig
from kgcli.weights.safetensors import write_weights

ADAPTER = "adapter"  # folder inside a model folder
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # peft's names
PEFT_PREFIX = "base_model.model."
BASE_LAYER = ".base_layer"


def add_lora(mllm: nn.Module, cfg: LoraConfig) -> None:
    """Put adapters beside the target layers; at first they change nothing.

    Raises: ConfigError: a target is not the name of a linear layer.
    """
    linears = {name.split(".")[-1] for name, module in mllm.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in cfg.targets if target not in linears]
    if unknown:
        raise ConfigError(
            f"lora.targets: the MLLM has no linear layers {', '.join(unknown)}; it has {', '.join(sorted(linears))}"
        )
    settings = peft.LoraConfig(r=cfg.rank, lora_alpha=cfg.alpha, target_modules=list(cfg.targets))
    peft.inject_adapter_in_model(settings, mllm)


def merged_weights(model: KosmosG) -> dict[str, Tensor]:
    """Return the weights of a KosmosG by their usual names, with any adapters added to the layers beside them."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    merged = {}
    for name, tensor in model.state_dict().items():
        layer, is_base, rest = name.rpartition(BASE_LAYER)
        if is_base:
            delta = adapted[layer].get_delta_weight("default") if rest == ".weight" else 0.0
            merged[layer + rest] = tensor + delta
        elif ".lora_" not in name:
            merged[name] = tensor
    return merged


def save_adapter(mllm: nn.Module, folder: Path) -> None:
    """Write the adapters alone, as `peft.PeftModel.from_pretrained` reads them for the MLLM they were trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = mllm.peft_config
    settings["default"].save_pretrained(str(folder))
    weights = {PEFT_PREFIX + name: weight for name, weight in get_peft_model_state_dict(mllm).items()}
    write_weights(folder / ADAPTER_WEIGHTS, weights)

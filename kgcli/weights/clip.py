"""The vision tower of a CLIP that transformers saved: found in a folder, held against the sizes it is to have."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import CLIPVisionConfig

from kgcli.config import CONFIG_NAME, VisionConfig
from kgcli.errors import IncompatibleError, MissingError
from kgcli.model.convert import vision_from_transformers
from kgcli.model.weights import read_weights

WEIGHTS_NAME = "model.safetensors"


def find_clip(folder: Path) -> Path:
    """Return the transformers folder in the result of `kg base clip`, or the folder itself where it is one.

    Raises: MissingError.
    """
    for candidate in (folder / "clip", folder):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    raise MissingError(f"{folder} holds no CLIP: there is no {CONFIG_NAME} in it, nor in a folder clip")


def read_tower(folder: Path, cfg: VisionConfig) -> dict[str, Tensor]:
    """Return the weights of the vision tower under our names.

    Raises: MissingError; IncompatibleError where the same weights would compute something else with `cfg`.
    """
    found = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    settings = {
        "image_size": (found.image_size, cfg.image_size),
        "patch_size": (found.patch_size, cfg.patch_size),
        "width": (found.hidden_size, cfg.width),
        "num_heads": (found.num_attention_heads, cfg.num_heads),
        "num_layers": (found.num_hidden_layers, cfg.num_layers),
        "activation": (found.hidden_act, cfg.activation),
    }
    wrong = [f"{name} is {theirs}, not {ours}" for name, (theirs, ours) in settings.items() if theirs != ours]
    if wrong:
        raise IncompatibleError(f"the CLIP of {folder}: {', '.join(wrong)}; set model.vision to what it has")
    return vision_from_transformers(read_weights(folder / WEIGHTS_NAME))

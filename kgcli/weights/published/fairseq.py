"""Safe loading of other programs' checkpoints, without running code in them, and writing of fairseq's format.

A pickle can call any function. Here only the few classes that fairseq's plain values need are allowed, objects of its
libraries become empty stand-ins, and everything else is refused before it is imported.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError, MissingError, OutOfMemoryError, UsageError
from kgcli.weights.safetensors import read_weights
from kgcli.weights.tensor_files import check_archive

STATE_KEYS = ("model", "state_dict")  # keys under which fairseq and open_clip store the weights
ZIP_MAGIC = b"PK\x03\x04"
# Libraries whose objects may be pickled beside the weights. None of their code is imported.
STAND_IN_PACKAGES = ("fairseq", "omegaconf", "hydra", "torchscale", "unilm", "infinibatch")
REQUESTED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
# Errors raised by reading a truncated file or one that is not a checkpoint, depending on where it ends.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file, memory-mapped if its format allows, and its training settings, if any."""

    weights: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


class StandIn:
    """A placeholder for an object whose class is not imported: accepts any arguments and state, does nothing."""

    def __new__(cls, *args: object, **options: object) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Discard the state."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a fairseq, open_clip or plain state-dict pickle, or a safetensors file.

    Raises:
        MissingError: the file is not there or is damaged.
        IncompatibleError: it would run code, or holds no weights.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the checkpoint file in it, or a transformers folder of Kosmos-2")
    if not path.is_file():
        raise MissingError(f"there is no checkpoint {path}")
    content = read_weights(path) if path.suffix == ".safetensors" else _unpickle(path)
    return Checkpoint(_find_weights(content, path), _find_settings(content))


def checkpoint_content(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Any]:
    """Return a published state dict in the structure that fairseq pickles.

    Source: fairseq's Trainer.state_dict; the settings are those of the published run scripts.
    """
    slots = cfg.resampler.num_queries
    model = argparse.Namespace(
        arch="kosmosg_xl",
        task="kosmosg",
        criterion="kosmosg",
        decoder_embed_dim=cfg.mllm.width,
        decoder_layers=cfg.mllm.num_layers,
        decoder_attention_heads=cfg.mllm.num_heads,
        decoder_ffn_embed_dim=cfg.mllm.ffn_width,
        latent_query_num=slots,
        image_token_length=slots,
        subln=True,
        sope_rel_pos=True,
        flash_attention=True,
        no_scale_embedding=False,
        share_decoder_input_output_embed=True,
        activation_fn="gelu",
        align=any(name.startswith("aligner.decoder") for name in state),
    )
    history = {
        "criterion_name": "KosmosGLoss",
        "optimizer_name": "MemoryEfficientFP16Optimizer",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": {"_name": None, "common": {}, "model": model, "task": {"_name": "kosmosg", "image_token_length": slots}},
        "model": dict(state),
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"metrics": {}, "previous_training_time": 0.0, "train_iterator": {"epoch": 1}},
    }


def _unpickle(path: Path) -> Any:
    allowed = _plain_values()
    while True:
        try:
            return _load(path, allowed)
        except UNREADABLE as error:
            requested = REQUESTED.search(str(error))
            if requested is None:
                raise _explain(path, error) from None
            name = requested[1]
            if name.partition(".")[0] not in STAND_IN_PACKAGES:
                raise IncompatibleError(
                    f"{path} is refused: it needs {name}, which weights and plain values do not; "
                    "no code was run. Do not open it elsewhere unless you trust its author"
                ) from None
            allowed.append((StandIn, name))


def _load(path: Path, allowed: list[Any]) -> Any:
    check_archive(path)
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # the format before torch 1.6 cannot be mapped
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")  # of pickle protocols; unreadable files raise
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _plain_values() -> list[Any]:
    """Return the classes and functions of plain settings and numbers, with their names in pickles."""
    # The function's module depends on the numpy version that wrote the file.
    scalar = np.float64(0).__reduce__()[0]
    array = np.zeros(0).__reduce__()[0]
    functions = [(scalar, "scalar"), (array, "_reconstruct")]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    pieces = [(function, f"{module}.{name}") for function, name in functions for module in modules]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?SU"}
    return [argparse.Namespace, np.dtype, np.ndarray, *pieces, *sorted(kinds, key=str)]


def _explain(path: Path, error: BaseException) -> IncompatibleError | MissingError | OutOfMemoryError:
    text = str(error)
    if "TorchScript" in text:
        return IncompatibleError(
            f"{path} is a TorchScript program, as OpenAI publishes CLIP; give the same weights as a state dict "
            "or as safetensors, such as model.safetensors of openai/clip-vit-large-patch14"
        )
    if "allocate memory" in text:
        return OutOfMemoryError(f"{path} does not fit into this machine's memory; convert it on a larger one")
    reason = text.rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0] or type(error).__name__
    return MissingError(
        f"{path} cannot be read as weights and plain values: it is damaged or not a checkpoint ({reason}); "
        "no code was run"
    )


def _find_weights(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise IncompatibleError(f"{path} holds no weights; a checkpoint has them under {' or '.join(STATE_KEYS)}")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and _is_plain(value))]
    if odd:
        raise IncompatibleError(f"{path} has {len(odd)} value(s) that are not weights, such as {odd[0]}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""  # added by data-parallel training
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _find_settings(content: Any) -> dict[str, Any]:
    """Return the model's settings from fairseq's older (`args`) or newer (`cfg.model`) format."""
    cfg = content.get("cfg")
    settings = cfg.get("model") if isinstance(cfg, dict) else content.get("args")
    if isinstance(settings, argparse.Namespace):
        return vars(settings)
    return settings if isinstance(settings, dict) else {}

"""A model folder before its weights are loaded: place, sizes, tokenizer, whether its files are whole. No torch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kgcli.config import CONFIG_NAME, ModelConfig, read_model_config
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import IncompatibleError, MissingError
from kgcli.shipped import DEFAULT_MODEL

WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer"
RENAMED_REPOSITORIES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """A model that is there and whole as far as can be told without loading it."""

    path: Path
    name: str  # as the user knows it
    cfg: ModelConfig
    decoder: str  # a local diffusers folder or a Hub id
    tokenizer: Tokenizer

    @cached_property
    def sha256(self) -> str:
        """Of the weight files, in the order of their names."""
        return _hash_files(sorted(self.path.glob("model*.safetensors")))

    @cached_property
    def decoder_sha256(self) -> str:
        """Of the decoder's weight files, or "" where it is not a local folder."""
        return _hash_files(sorted(Path(self.decoder).glob("*/*.safetensors"))) if Path(self.decoder).is_dir() else ""

    @cached_property
    def scheduler_config(self) -> dict[str, object]:
        """The decoder's scheduler settings, or none where it is not a local folder."""
        path = Path(self.decoder) / "scheduler" / "scheduler_config.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def open_model(model: str | None = None, decoder: str | None = None, offline: bool = False) -> ModelFolder:
    """Find a model (a folder, a Hub id, or None for the shipped one) and check its files.

    Raises:
        MissingError: something is not there or damaged.
        IncompatibleError: its parts do not fit each other or this version.
    """
    path = _find_model(model, offline)
    cfg = read_model_config(path)
    check_weight_files(path, WEIGHTS_NAME)
    tokenizer = Tokenizer.load(path / TOKENIZER_NAME)
    if tokenizer.vocab_size != cfg.mllm.vocab_size or tokenizer.special_ids != cfg.special_ids:
        raise IncompatibleError(
            f"the tokenizer of {path} gives {tokenizer.vocab_size} ids, the model has {cfg.mllm.vocab_size} "
            "(or their special symbols differ); the folder mixes two models"
        )
    name = "nano" if model is None else Path(model).name or path.name
    return ModelFolder(
        path=path, name=name, cfg=cfg, decoder=_find_decoder(path, decoder or cfg.decoder), tokenizer=tokenizer
    )


def check_weight_files(folder: Path, name: str) -> None:
    """See that a safetensors file, or every shard its index lists, is there and whole.

    Raises: MissingError.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        check_safetensors(folder / name)
        return
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MissingError(f"{index} is damaged; fetch or copy it again") from None
    for shard in shards:
        check_safetensors(folder / Path(str(shard)).name)


def check_safetensors(path: Path) -> None:
    """See that a safetensors file is there and as long as its header says; the header alone is read.

    Raises: MissingError.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path.name} in {path.parent}; a model folder has one")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(size, _MAX_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + header_size + max(ends, default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes, its header says {expected}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise MissingError(f"{path} is damaged ({error}); fetch or copy it again") from None


def _find_model(model: str | None, offline: bool) -> Path:
    if model is None:
        if not DEFAULT_MODEL.is_dir():
            raise MissingError("the shipped model is missing: install the package again, or give --model")
        return DEFAULT_MODEL
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise MissingError(f"{model} is a file; a model is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}")
    if not _is_hub_id(model):
        raise MissingError(f"there is no model folder {model}")
    return _download(model, offline)


def _download(repository: str, offline: bool) -> Path:
    """The folder of a Hub repository, from the cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True")
    try:
        return Path(snapshot_download(repository, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = "it is not in the local cache and --offline is set" if offline else str(error).split("\n")[0]
        raise MissingError(
            f"there is no model folder {repository}, and no such model could be fetched: {why}"
        ) from None


def _find_decoder(folder: Path, decoder: str) -> str:
    """A folder inside the model folder, a folder anywhere, or a Hub id."""
    for path in (folder / decoder, Path(decoder).expanduser()):
        if path.is_dir():
            _check_decoder(path)
            return str(path)
    if decoder in RENAMED_REPOSITORIES:
        _log.warning("%s has moved: using %s", decoder, RENAMED_REPOSITORIES[decoder])
        return RENAMED_REPOSITORIES[decoder]
    if not _is_hub_id(decoder):
        raise MissingError(f"there is no decoder {decoder}, neither in {folder} nor as a folder of its own")
    return decoder


def _check_decoder(path: Path) -> None:
    for part, name in (("unet", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")):
        file = path / part / name
        try:
            json.loads(file.read_text("utf-8"))
        except OSError:
            raise MissingError(f"the decoder {path} has no {part}/{name}; a diffusers folder has one") from None
        except ValueError:
            raise MissingError(f"{file} is damaged (no JSON); fetch or copy it again") from None
    for part in ("unet", "vae"):
        weights = sorted((path / part).glob("*.safetensors"))
        if not weights:
            raise MissingError(f"the decoder {path} has no weights in {part}/ (a .safetensors file)")
        for file in weights:
            check_safetensors(file)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", name) is not None


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

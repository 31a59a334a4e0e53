"""Model folders before their weights are loaded: location, sizes, tokenizer and a check that all files are complete."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kgcli.config import CONFIG_NAME, ModelConfig, check_aligner
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.reading import MAX_INTEGER, parse_json, read_json
from kgcli.weights.config import MAX_CONFIG_BYTES, read_model_config
from kgcli.weights.hashes import hash_files
from kgcli.weights.hub import HubError, is_hub_id, snapshot
from kgcli.weights.published.catalogue import is_entry, local_model
from kgcli.weights.shipped import DEFAULT_MODEL, DEFAULT_NAME, SD15_SIZES
from kgcli.weights.single_file_header import check_inputs, check_single_decoder, scheduler_settings
from kgcli.weights.words import KnownWords, read_words

WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer"
RENAMED_REPOSITORIES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
# Bits per number; dtypes that are not listed are checked by the library that reads them.
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8}
_READS_TEXT = "attn2.to_k.weight"  # (width, conditioning width), under the names of diffusers and all others

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that is complete, as far as can be checked without loading its weights."""

    path: Path
    name: str  # as given by the user
    cfg: ModelConfig
    decoder: str  # a local diffusers folder, a Hub id or a .safetensors file
    tokenizer: Tokenizer

    @cached_property
    def sha256(self) -> str:
        """Hash of the weight files, in the order of their names."""
        return hash_files(sorted(self.path.glob("model*.safetensors")))

    @cached_property
    def words(self) -> KnownWords | None:
        """The words, subjects and sizes it was trained on; None if it does not tell. Raises: as `read_words`."""
        return read_words(self.path)

    @property
    def num_bytes(self) -> int:
        """Size of the weight files."""
        return sum(path.stat().st_size for path in self.path.glob("model*.safetensors"))

    @cached_property
    def decoder_sha256(self) -> str:
        """Hash of the decoder's weight files, or "" for a decoder on the Hub."""
        path = Path(self.decoder)
        return hash_files([path] if path.is_file() else sorted(path.glob("*/*.safetensors"))) if path.exists() else ""

    @property
    def decoder_sizes(self) -> Path | None:
        """Folder with the config.json files of a single-file decoder: the model's own decoder folder, or else
        Stable Diffusion v1.5; None if the decoder is not a single file."""
        if not Path(self.decoder).is_file():
            return None
        own = _own_decoder(self.path, self.cfg.decoder) if _is_inside(self.cfg.decoder) else None
        return own or SD15_SIZES

    def with_decoder(self, decoder: str) -> ModelFolder:
        """Return this folder with another decoder: a diffusers folder, Hub id or .safetensors file.

        Raises: MissingError, IncompatibleError.
        """
        found = _find_decoder(self.path, decoder, self.cfg.aligner.width)
        return ModelFolder(path=self.path, name=self.name, cfg=self.cfg, decoder=found, tokenizer=self.tokenizer)

    def unet_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the decoder's U-Net by diffusers' names, empty if unknown before it is loaded.

        Raises: MissingError for damaged files.
        """
        files = sorted((Path(self.decoder) / "unet").glob("*.safetensors"))
        return {name: shape for file in files for name, shape in check_safetensors(file).items()}


def open_model(
    model: str | None = None,
    decoder: str | None = None,
    offline: bool = False,
    *,
    with_decoder: bool = True,
    with_aligner: bool = True,
) -> ModelFolder:
    """Find a model (a folder, the name of a pulled one, a Hub id, or None or "nano" for the shipped one) and check its
    files and its decoder's. With `with_aligner` False a stage 1 model, without AlignerNet, is accepted.

    Raises:
        MissingError: something is not there or damaged.
        IncompatibleError: its parts do not fit each other or this version.
    """
    path = _find_model(model, offline)
    cfg = read_model_config(path)
    shapes = weight_shapes(path, WEIGHTS_NAME)
    if with_aligner:
        check_aligner(shapes, path)
    tokenizer = Tokenizer.load(path / TOKENIZER_NAME)
    if tokenizer.vocab_size != cfg.mllm.vocab_size or tokenizer.special_ids != cfg.special_ids:
        raise IncompatibleError(
            f"the tokenizer of {path} gives {tokenizer.vocab_size} ids, the model has {cfg.mllm.vocab_size} "
            "(or their special symbols differ); the folder mixes two models"
        )
    name = DEFAULT_NAME if model is None else Path(model).name or path.name
    if with_decoder and decoder is None:
        _check_named_decoder(path, cfg.decoder)
    found = _find_decoder(path, decoder or cfg.decoder, cfg.aligner.width) if with_decoder else cfg.decoder
    return ModelFolder(path=path, name=name, cfg=cfg, decoder=found, tokenizer=tokenizer)


def weight_shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, or in the shards of its index, after checking all.

    Raises: MissingError.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        return check_safetensors(folder / name)
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MissingError(f"{index} is damaged; fetch or copy it again") from None
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        shapes |= check_safetensors(folder / Path(str(shard)).name)
    return shapes


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file exists and has the length its header states, reading only the header.

    Returns the shape of each tensor.

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
            header = parse_json(file.read(header_size), name="its header")
        header.pop("__metadata__", None)
        expected = 8 + header_size + max((_end_of(name, entry) for name, entry in header.items()), default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes, its header states {expected}")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, struct.error, MissingError) as error:
        raise MissingError(f"{path} is damaged ({error}); fetch or copy it again") from None


def _end_of(name: str, entry: dict[str, Any]) -> int:
    """Return the end offset of a tensor, after checking offsets against shape. Raises: ValueError."""
    start, end = entry["data_offsets"]
    shape, bits = entry["shape"], _BITS.get(entry["dtype"])
    if not all(type(number) is int and 0 <= number <= MAX_INTEGER for number in (start, end, *shape)) or start > end:
        raise ValueError(f"{name} has the shape {shape} and lies at {start} to {end}")
    if bits is not None and (end - start) * 8 != math.prod(shape) * bits:
        raise ValueError(f"{name} has the shape {shape} and {end - start} bytes")
    return int(end)


def _find_model(model: str | None, offline: bool) -> Path:
    if model is None or (model == DEFAULT_NAME and not Path(model).is_dir()):
        if not DEFAULT_MODEL.is_dir():
            raise MissingError("the shipped model is missing: install the package again, or give --model")
        return DEFAULT_MODEL
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if (pulled := local_model(model)) is not None:
        return pulled
    if is_entry(model):
        raise MissingError(f"{model} is not on this machine yet: `kg models pull {model}` fetches it")
    if path.exists():
        raise MissingError(f"{model} is a file; a model is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}")
    if not is_hub_id(model):
        raise MissingError(f"there is no model folder {model}")
    try:
        return snapshot(model, offline=offline)
    except HubError as error:
        raise MissingError(f"there is no model folder {model}, and no such model could be fetched: {error}") from None


def _check_named_decoder(folder: Path, decoder: str) -> None:
    """Check that the decoder named by a model folder is inside it or is Stable Diffusion v1.5.

    An untrusted folder must not choose a path or a download: any other decoder has to be given by the user.

    Raises: UsageError.
    """
    if {decoder, RENAMED_REPOSITORIES.get(decoder)} & set(RENAMED_REPOSITORIES.values()):
        return
    if _is_inside(decoder) and ((folder / decoder).is_dir() or not is_hub_id(decoder)):
        return  # a missing one is reported by `_find_decoder`
    raise UsageError(
        f"the {CONFIG_NAME} of {folder} names a decoder that is not in the folder, {decoder}; if you trust it, give "
        f"--decoder {decoder}"
    )


def _is_inside(decoder: str) -> bool:
    """Return whether a name stays inside the folder whose config.json holds it."""
    return not Path(decoder).is_absolute() and ".." not in Path(decoder).parts and not decoder.startswith("~")


def _find_decoder(folder: Path, decoder: str, width: int) -> str:
    """Find a decoder: a folder inside the model folder, a folder or .safetensors file anywhere, or a Hub id.

    Raises: MissingError; IncompatibleError if the U-Net attends to vectors of another width.
    """
    found = _own_decoder(folder, decoder) or Path(decoder).expanduser()
    if found.is_dir():
        config = check_diffusers_part(found, "unet")
        check_diffusers_part(found, "vae")
        _read_json(found, "scheduler/scheduler_config.json")
        check_width(str(found), config.get("cross_attention_dim"), width)
        check_inputs(str(found), config.get("in_channels", 4), config.get("out_channels", 4))  # defaults of diffusers
        return str(found)
    if found.is_file():
        shapes = check_single_file(found)
        # All cross-attention of these U-Nets attends to the same vectors.
        check_width(str(found), next((s[1] for name, s in shapes.items() if name.endswith(_READS_TEXT)), None), width)
        check_single_decoder(found, shapes)
        scheduler_settings(found)
        return str(found)
    if decoder in RENAMED_REPOSITORIES:
        _log.warning("%s has moved: using %s", decoder, RENAMED_REPOSITORIES[decoder])
        return RENAMED_REPOSITORIES[decoder]
    if not is_hub_id(decoder):
        raise MissingError(f"there is no decoder {decoder}, neither in {folder} nor as a folder or file of its own")
    return decoder


def check_width(source: str, found: object, expected: int) -> None:
    """Refuse a decoder or ControlNet whose conditioning width differs from the model's; None is not known yet.

    Raises: IncompatibleError.
    """
    if found is not None and found != expected:
        raise IncompatibleError(
            f"{source} attends to vectors of width {found}, this model makes {expected}; choose one of the decoder's "
            "family that the aligner was trained for"
        )


def check_diffusers_part(folder: Path, part: str) -> dict[str, Any]:
    """Check the weights of one part of a diffusers folder ("" is the folder itself); return its config.json.

    Raises: MissingError.
    """
    config = _read_json(folder, f"{part}/config.json".lstrip("/"))
    weights = sorted((folder / part).glob("*.safetensors"))
    if not weights:
        raise MissingError(f"{folder} has no weights in {part}/ (a .safetensors file)")
    for file in weights:
        check_safetensors(file)
    return config


def check_single_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a .safetensors file given by the user.

    Raises: MissingError, also for other formats: those can run code when they are loaded.
    """
    if path.suffix.lower() != ".safetensors":
        raise MissingError(f"{path} is not a .safetensors file; convert it to one first")
    return check_safetensors(path)


def _own_decoder(folder: Path, decoder: str) -> Path | None:
    """Return the decoder's folder inside the model folder, if there is one."""
    return folder / decoder if (folder / decoder).is_dir() else None


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = read_json(folder / name, max_bytes=MAX_CONFIG_BYTES)
    except MissingError as error:
        if not (folder / name).is_file():
            raise MissingError(f"{folder} has no {name}; a diffusers folder has one") from None
        raise MissingError(f"{error}; fetch or copy it again") from None
    if not isinstance(values, dict):
        raise MissingError(f"{folder / name} is damaged (no JSON object); fetch or copy it again")
    return values


def is_model(folder: Path) -> bool:
    """Tell whether a folder is a model folder, by its configuration."""
    return (folder / CONFIG_NAME).is_file()


def check_target(
    out: Path,
    inputs: list[Path],
    *,
    overwrite: bool,
    what: str = "a model folder",
    is_one: Callable[[Path], bool] = is_model,
) -> Path:
    """Return the absolute path of a folder that may be written.

    Args:
        inputs: files and folders that are read, and must not be lost
        what: is written, in words
        is_one: tells whether a folder is such a thing, which `overwrite` may replace

    Raises: UsageError if something there must not be lost.
    """
    out = out.expanduser().absolute()
    if out.is_file():
        raise UsageError(f"{out} is a file, not {what}; give another name")
    if not out.is_dir() or not any(out.iterdir()):
        return out
    if not overwrite:
        raise UsageError(f"{out} already exists; give --overwrite or another name")
    if any(path.resolve().is_relative_to(out.resolve()) for path in inputs):
        raise UsageError(f"{out} contains what is to be read; give another name")
    if not is_one(out):
        raise UsageError(f"{out} is not {what}, so --overwrite does not apply; give another name")
    return out

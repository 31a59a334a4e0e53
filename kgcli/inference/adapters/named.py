"""LoRA files and ControlNets as named by the user, checked before torch loads.

style.safetensors:0.7            a LoRA (a file, or a folder of diffusers or peft) and its scale
canny=photo.jpg:0.8              a ControlNet's kind, the photo its map is made from, and its scale
openpose=@pose.png               a ready map, for any kind
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kgcli.data.images import ImageFile, read_image
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.weights.folder import (
    ModelFolder,
    check_diffusers_part,
    check_single_file,
    check_width,
)
from kgcli.weights.hashes import hash_files
from kgcli.weights.hub import is_hub_id
from kgcli.weights.lora.hashing import hash_tensors
from kgcli.weights.lora.header import LoraHeader, lora_file, lora_files, read_lora_header
from kgcli.weights.shipped import find_adapter, find_image

MAX_LORA_SCALE = 10.0  # positive or negative; a negative scale subtracts the LoRA
MAX_CONTROL_SCALE = 2.0
SD15_WIDTH = 768  # of the conditioning of Stable Diffusion v1
MADE_MAPS = ("canny", "scribble", "softedge", "depth", "seg")
MAP_MODELS = {"depth": "Intel/dpt-large", "seg": "openmmlab/upernet-convnext-small"}  # on the Hub
CONTROLNETS = {  # for Stable Diffusion v1.5, on the Hub
    kind: f"lllyasviel/control_{name}"
    for kind, name in {
        "canny": "v11p_sd15_canny",
        "scribble": "v11p_sd15_scribble",
        "softedge": "v11p_sd15_softedge",
        "depth": "v11f1p_sd15_depth",
        "seg": "v11p_sd15_seg",
        "openpose": "v11p_sd15_openpose",
        "lineart": "v11p_sd15_lineart",
        "normalbae": "v11p_sd15_normalbae",
        "mlsd": "v11p_sd15_mlsd",
        "tile": "v11f1e_sd15_tile",
    }.items()
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder or file with its hash, or a Hub id without one."""

    location: str
    name: str  # without the user's folders
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file and its scale."""

    source: Source
    scale: float = 1.0
    autov3: str = ""  # the web UI's and Civitai's hash: sha256 of the tensors alone
    header: LoraHeader = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet, its input image, and its scale."""

    kind: str
    source: Source
    image: ImageFile
    ready: bool = False  # the image is the map itself
    maker: Source | None = None  # transformers model that makes the map, None for OpenCV
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The adapters of one image, in the order given."""

    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()


def read_adapters(
    model: ModelFolder,
    *,
    loras: Sequence[str] = (),
    controls: Sequence[str] = (),
    controlnet_models: Sequence[str] = (),
    map_models: Sequence[str] = (),
) -> Adapters:
    """Parse the adapters given by flags, or by a Python caller in the same syntax, for a model.

    Raises: UsageError, MissingError, ImageError, IncompatibleError.
    """
    found = tuple(read_lora(text) for text in loras)
    for lora in found:
        lora.header.check_width(model.cfg.aligner.width)
        if shapes := model.unet_shapes():
            lora.header.place(shapes)
        if [other.source.sha256 for other in found].count(lora.source.sha256) > 1:
            raise UsageError(f"--lora {lora.source.name} is given twice; give it once with the sum of the scales")
    networks = read_kinds(controlnet_models, "--controlnet-model")
    makers = read_kinds(map_models, "--map-model")
    made = tuple(_read_control(text, model, networks, makers) for text in controls)
    kinds = {control.kind for control in made}
    for flag, given in (("--controlnet-model", networks), ("--map-model", makers)):
        if unused := [kind for kind in given if kind not in kinds]:
            raise UsageError(f"{flag} {unused[0]}=... needs --controlnet {unused[0]}=IMAGE")
    return Adapters(loras=found, controls=made)


def read_lora(text: str) -> Lora:
    """Parse `FILE[:SCALE]`; FILE may be a folder of diffusers or peft.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    location, scale = _split_scale(text, "--lora", -MAX_LORA_SCALE, MAX_LORA_SCALE)
    path = Path(location).expanduser()
    if not path.exists():
        path = find_adapter(location) or path
    if not path.exists():
        raise MissingError(f"there is no LoRA file {path}")
    return open_lora(path, scale)


def open_lora(path: Path, scale: float) -> Lora:
    """Open a LoRA file, or a folder written by diffusers or peft, and check its header.

    Raises: MissingError; IncompatibleError for a kind that cannot be applied.
    """
    file = lora_file(path)
    header = read_lora_header(file, check_single_file(file))
    source = Source(location=str(file), name=file.name, sha256=hash_files(lora_files(file)))
    return Lora(source=source, scale=scale, autov3=hash_tensors(file), header=header)


def read_kinds(texts: Iterable[str], flag: str) -> dict[str, str]:
    """Parse `KIND=FOLDER_OR_ID` into a location per kind.

    Raises: UsageError.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, location = _split_kind(text, flag, "FOLDER_OR_ID")
        if kind in found:
            raise UsageError(f"{flag} {kind}=... is given twice")
        found[kind] = location
    return found


def find_controlnet(kind: str, location: str | None, model: ModelFolder) -> Source:
    """Find the ControlNet of a kind: a folder or Hub id; default: the shipped nano one or that of SD v1.5.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    width = model.cfg.aligner.width
    if location is None:
        location = _shipped_controlnet(kind, width)
    if location is None:
        if width != SD15_WIDTH or kind not in CONTROLNETS:
            why = "for a decoder of this size" if kind in CONTROLNETS else "of this kind"
            raise UsageError(f"no ControlNet {why} is known: give --controlnet-model {kind}=FOLDER_OR_ID")
        location = CONTROLNETS[kind]
    folder = _folder(location)
    if folder.is_dir():
        config = check_diffusers_part(folder, "")
        check_width(f"the ControlNet {folder}", config.get("cross_attention_dim"), width)
    return find_source(location, f"--controlnet-model {kind}")


def find_maker(kind: str, location: str | None) -> Source | None:
    """Find the model that makes the maps of a kind, None for OpenCV.

    Raises: MissingError.
    """
    if kind not in MAP_MODELS:
        return None
    return find_source(location or MAP_MODELS[kind], f"--map-model {kind}")


def _read_control(text: str, model: ModelFolder, networks: dict[str, str], makers: dict[str, str]) -> Control:
    """Parse `KIND=IMAGE[:SCALE]` or `KIND=@MAP[:SCALE]`."""
    kind, rest = _split_kind(text, "--controlnet", "IMAGE[:SCALE]")
    ready = rest.startswith("@")
    location, scale = _split_scale(rest.removeprefix("@"), f"--controlnet {kind}", 0.0, MAX_CONTROL_SCALE)
    if not ready and kind not in MADE_MAPS:
        raise UsageError(
            f"no {kind} map can be made from a photo (only {', '.join(MADE_MAPS)}); "
            f"give a ready one: --controlnet {kind}=@map.png"
        )
    try:
        image = read_image(find_image(location))
    except ImageError as error:
        raise ImageError(f"--controlnet {kind}: {error}") from None
    return Control(
        kind=kind,
        source=find_controlnet(kind, networks.get(kind), model),
        image=image,
        ready=ready,
        maker=None if ready else find_maker(kind, makers.get(kind)),
        scale=scale,
    )


def _shipped_controlnet(kind: str, width: int) -> str | None:
    """Return the shipped ControlNet of a kind if it takes conditionings of this width."""
    folder = find_adapter(f"nano/{kind}")
    if folder is None or not folder.is_dir():
        return None
    fits = check_diffusers_part(folder, "").get("cross_attention_dim") == width
    return str(folder) if fits else None


def _folder(location: str) -> Path:
    folder = Path(location).expanduser()
    return folder if folder.is_dir() else find_adapter(location) or folder


def find_source(location: str, flag: str) -> Source:
    """Return the folder or Hub id that a user gave for a network. Raises: MissingError."""
    folder = _folder(location)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise MissingError(f"{flag}: {folder} holds no weights (a .safetensors file)")
        return Source(location=str(folder), name=folder.resolve().name, sha256=hash_files(weights))
    if not is_hub_id(location):
        raise MissingError(f"{flag}: there is no folder {location}")
    return Source(location=location, name=location)


def _split_kind(text: str, flag: str, wanted: str) -> tuple[str, str]:
    kind, equals, rest = text.partition("=")
    if not equals or not rest or not re.fullmatch(r"[a-z][a-z0-9_]*", kind):
        raise UsageError(f"{flag} {text} is not KIND={wanted}, with a KIND such as canny")
    return kind, rest


def _split_scale(text: str, flag: str, least: float, most: float) -> tuple[str, float]:
    """Split a path from the number after its last colon, default 1; an existing file of the whole name wins."""
    location, colon, number = text.rpartition(":")
    if not colon or not location or Path(text).expanduser().exists():
        return text, 1.0
    try:
        scale = float(number)
    except ValueError:
        return text, 1.0  # a colon of the path itself
    if not (math.isfinite(scale) and least <= scale <= most):
        raise UsageError(f"{flag}: the scale is {number}; it must be from {least:g} to {most:g}")
    return location, scale

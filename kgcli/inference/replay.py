"""From a written picture back to what drew it: its metadata checked, its input pictures found by hash. No torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kgcli.config import SamplingConfig
from kgcli.data.images import read_picture
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import ImageError, IncompatibleError, MissingError, PromptError, UsageError
from kgcli.inference.adapters import Adapters, Control, Lora, Source, open_lora, read_kinds
from kgcli.inference.metadata import read_metadata
from kgcli.weights.folder import ModelFolder, hash_files
from kgcli.weights.hub import is_hub_id
from kgcli.weights.lora_header import lora_file, lora_files
from kgcli.weights.shipped import find_adapter, find_picture

SAMPLED_BY = ("steps", "guidance_scale", "scheduler", "width", "height")  # in every record; older ones have no more
_log = logging.getLogger(__name__)


class _Input(BaseModel):
    name: str
    sha256: str


class _Adapter(BaseModel):
    """A LoRA (name, sha256) or a ControlNet (kind, image, model) of the metadata."""

    type: str
    scale: float
    name: str = ""
    sha256: str = ""
    kind: str = ""
    ready: bool = False
    image: _Input = _Input(name="", sha256="")
    model: _Input = _Input(name="", sha256="")
    map_model: _Input | None = None


class _Record(BaseModel):
    """The part of the metadata that a replay needs; more may be there."""

    model_config = ConfigDict(strict=True)

    prompt: str
    negative_prompt: str
    seed: int
    images: list[_Input]
    model: _Input
    decoder: _Input
    dtype: str
    quantize: str = "none"  # pictures of earlier versions do not say
    adapters: list[_Adapter] = []


@dataclass(frozen=True)
class Replay:
    """What to generate again: the prompt and seed by the names of a batch line, how it is sampled, and in which
    precision."""

    line: dict[str, Any]
    sampling: SamplingConfig
    dtype: str
    quantize: str
    adapters: Adapters


def read_replay(
    source: Path,
    model: ModelFolder,
    images: Sequence[str],
    chosen: bool,
    controlnet_models: Sequence[str] = (),
    map_models: Sequence[str] = (),
    with_adapters: bool = True,
    allow_download: bool = False,
) -> Replay:
    """What drew a picture, its inputs found among `images`, beside it, in this folder or in the package.

    `chosen` says that the user chose the model, which then may differ from the picture's. `controlnet_models` and
    `map_models` (`KIND=FOLDER`) say where a ControlNet and what makes its maps lie now; without `with_adapters` none
    of those are looked for. Hub ids in the metadata are taken up only with `allow_download`: an image of a stranger
    does not choose what is fetched.

    Raises:
        MissingError: it holds no metadata, or an input picture is not found.
        IncompatibleError: it was drawn by another model.
    """
    try:
        metadata = read_metadata(source)
        record = _Record.model_validate(metadata)
        sampled = {name: metadata[name] for name in SAMPLED_BY}
        sampled["guidance_rescale"] = metadata.get("guidance_rescale")
        sampling = SamplingConfig.model_validate(sampled, strict=True)
        prompt = Prompt.parse(record.prompt)
    except (ValidationError, PromptError, KeyError) as error:
        reason = f"{error.errors()[0]['loc']}" if isinstance(error, ValidationError) else str(error)
        raise MissingError(f"the kgcli metadata of {source} are damaged ({reason})") from None
    if len(prompt.images) != len(record.images):
        raise MissingError(f"the kgcli metadata of {source} are damaged (its images do not match its prompt)")
    _check_model(source, record, model, chosen)
    found = iter([_find_input(source, wanted, images) for wanted in record.images])
    parts = tuple(replace(p, path=str(next(found))) if isinstance(p, ImageRef) else p for p in prompt.parts)
    line = record.model_dump(exclude={"images", "model", "decoder", "dtype", "quantize", "adapters"})
    line["negative_prompt"] = Prompt(parts=(record.negative_prompt,)).format() if record.negative_prompt else None
    adapters = Adapters()
    if with_adapters:
        adapters = _find_adapters(source, record, images, controlnet_models, map_models, allow_download)
    line["prompt"] = Prompt(parts=parts).format()
    return Replay(line, sampling, record.dtype, record.quantize, adapters)


def _check_model(source: Path, record: _Record, model: ModelFolder, chosen: bool) -> None:
    same = record.model.sha256 == model.sha256 and record.decoder.sha256 == model.decoder_sha256
    if same:
        return
    if not chosen:
        raise IncompatibleError(
            f"{source} was drawn by the model {record.model.name} ({record.model.sha256[:10]}) with the decoder "
            f"{record.decoder.name}, not by {model.name} ({model.sha256[:10]}); give --model"
        )
    _log.warning("%s was drawn by another model or decoder: the picture will differ", source)


def _find_input(source: Path, wanted: _Input, images: Sequence[str]) -> Path:
    """The file whose bytes are those of an input picture."""
    name = Path(wanted.name).name
    nearby = [source.parent / name, Path(name), Path(find_picture(name)), Path(find_picture(f"nano/{name}"))]
    others = []
    for candidate in [*map(Path, images), *nearby]:
        try:
            if read_picture(candidate).sha256 == wanted.sha256:
                return candidate
            others.append(candidate)
        except ImageError:
            continue
    hint = f" ({others[0]} is another picture)" if others else ""
    raise MissingError(
        f"the input picture {name} (sha256 {wanted.sha256[:10]}) of {source} is not beside it nor here{hint}; "
        "give it with --image PATH"
    )


def _find_adapters(
    source: Path,
    record: _Record,
    images: Sequence[str],
    controlnet_models: Sequence[str],
    map_models: Sequence[str],
    allow_download: bool,
) -> Adapters:
    """All that was put on the decoder."""
    networks = read_kinds(controlnet_models, "--controlnet-model")
    makers = read_kinds(map_models, "--map-model")
    entries = record.adapters
    return Adapters(
        loras=tuple(_find_lora(source, entry) for entry in entries if entry.type == "lora"),
        controls=tuple(
            _find_control(source, entry, images, networks, makers, allow_download)
            for entry in entries
            if entry.type == "controlnet"
        ),
    )


def _find_lora(source: Path, wanted: _Adapter) -> Lora:
    """A LoRA whose file has the bytes of the one that was used."""
    name = Path(wanted.name).name
    for path in filter(None, (source.parent / name, Path(name), find_adapter(name))):
        if path.exists() and hash_files(lora_files(lora_file(path))) == wanted.sha256:
            return open_lora(path, wanted.scale)
    raise MissingError(
        f"the LoRA {name} (sha256 {wanted.sha256[:10]}) of {source} is not beside it nor here; give all it used with "
        "--lora FILE:SCALE, or move it here"
    )


def _find_control(
    source: Path,
    wanted: _Adapter,
    images: Sequence[str],
    networks: dict[str, str],
    makers: dict[str, str],
    allow_download: bool,
) -> Control:
    """A ControlNet with the picture it followed."""
    kind, maker = wanted.kind, wanted.map_model
    return Control(
        kind=kind,
        source=_find_source(source, wanted.model, networks.get(kind), "--controlnet-model", allow_download),
        picture=read_picture(_find_input(source, wanted.image, images)),
        ready=wanted.ready,
        maker=_find_source(source, maker, makers.get(kind), "--map-model", allow_download) if maker else None,
        scale=wanted.scale,
    )


def _find_source(source: Path, wanted: _Input, given: str | None, flag: str, allow_download: bool) -> Source:
    """A folder whose weights are those that were used, or the Hub id.

    Raises: MissingError; UsageError where the Hub may not be asked.
    """
    if not wanted.sha256 and given is None and is_hub_id(wanted.name):
        if not allow_download:
            raise UsageError(
                f"the metadata of {source} name {wanted.name} on the Hub; --allow-download fetches what an image "
                f"names, {flag} KIND=FOLDER_OR_ID gives your own"
            )
        return Source(location=wanted.name, name=wanted.name)
    name = Path(wanted.name).name
    nearby = [source.parent / name, Path(name), find_adapter(name)]
    for folder in [Path(given).expanduser()] if given else filter(None, nearby):
        if folder.is_dir() and hash_files(sorted(folder.glob("*.safetensors"))) == wanted.sha256:
            return Source(location=os.fspath(folder), name=name, sha256=wanted.sha256)
    where = f"is not {given}" if given else "is neither beside it nor here"
    raise MissingError(
        f"the folder {name} (sha256 {wanted.sha256[:10]}) of {source} {where}; give it with {flag} KIND=FOLDER"
    )

"""From a written picture back to what drew it: its metadata checked, its input pictures found by hash. No torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kgcli.data.images import read_picture
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import ImageError, IncompatibleError, MissingError, PromptError
from kgcli.metadata import read_metadata
from kgcli.modelfolder import ModelFolder
from kgcli.shipped import find_picture

_log = logging.getLogger(__name__)


class _Input(BaseModel):
    name: str
    sha256: str


class _Record(BaseModel):
    """The part of the metadata that a replay needs; more may be there."""

    model_config = ConfigDict(strict=True)

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    images: list[_Input]
    model: _Input
    decoder: _Input
    dtype: str


@dataclass(frozen=True)
class Replay:
    """What to draw again, by the names of a batch line, and in which precision."""

    line: dict[str, Any]
    dtype: str


def read_replay(source: Path, model: ModelFolder, images: Sequence[str], chosen: bool) -> Replay:
    """What drew a picture, its inputs found among `images`, beside it, in this folder or in the package.

    `chosen` says that the user chose the model, which then may differ from the picture's.

    Raises:
        MissingError: it holds no metadata, or an input picture is not found.
        IncompatibleError: it was drawn by another model.
    """
    try:
        record = _Record.model_validate(read_metadata(source))
        prompt = Prompt.parse(record.prompt)
    except (ValidationError, PromptError) as error:
        reason = f"{error.errors()[0]['loc']}" if isinstance(error, ValidationError) else str(error)
        raise MissingError(f"the kgcli metadata of {source} are damaged ({reason})") from None
    if len(prompt.images) != len(record.images):
        raise MissingError(f"the kgcli metadata of {source} are damaged (its images do not match its prompt)")
    _check_model(source, record, model, chosen)
    found = iter([_find_input(source, wanted, images) for wanted in record.images])
    parts = tuple(replace(p, path=str(next(found))) if isinstance(p, ImageRef) else p for p in prompt.parts)
    line = record.model_dump(exclude={"images", "model", "decoder", "dtype"})
    line["negative_prompt"] = Prompt(parts=(record.negative_prompt,)).format() if record.negative_prompt else None
    return Replay({**line, "prompt": Prompt(parts=parts).format()}, record.dtype)


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

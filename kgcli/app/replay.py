"""How a dropped image was made, as values for the page's fields; its inputs are found among uploads and examples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kgcli.app.examples import example_item
from kgcli.app.limits import NONE
from kgcli.app.settings import Offer
from kgcli.app.uploads import Upload, read_bytes
from kgcli.data.images import read_image
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import KgError, MissingError
from kgcli.inference.replay import Record, read_record
from kgcli.weights.folder import ModelFolder
from kgcli.weights.hashes import hash_files
from kgcli.weights.lora.header import lora_file, lora_files
from kgcli.weights.shipped import find_adapter, find_shipped
from kgcli.world.examples import EXAMPLES


@dataclass(frozen=True)
class Restored:
    """Values of the page's fields, and notes about what could not be restored."""

    values: dict[str, Any]  # by the field's name; `images` are uploads as the page holds them
    notes: list[str]


def restore(item: Any, model: ModelFolder, held: Sequence[tuple[Any, Upload]], offer: Offer) -> Restored:
    """Return the values that made a dropped image; `held` are the page's images as sent and as read.

    Raises: MissingError for an image without metadata, ImageError for another file.
    """
    name, data = read_bytes(item)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{Path(name).suffix.lower()}"
        path.write_bytes(data)
        try:
            record, sampling, prompt = read_record(path)
        except KgError as error:
            raise type(error)(str(error).replace(str(path), name)) from None
    notes = []
    if (record.model.sha256, record.decoder.sha256) != (model.sha256, model.decoder_sha256):
        notes.append(f"it was made by the model {record.model.name}, not by {model.name}: the image will differ")
    images = [_find_image(one.sha256, one.name, held) for one in record.images]
    values = {
        **{key: getattr(sampling, key) for key in ("width", "height", "guidance_scale", "scheduler")},
        "steps": sampling.num_inference_steps,
        "seed": record.seed,
        "negative_prompt": record.negative_prompt,
        "prompt": _numbered(prompt).format(),
        "images": images,
        **_adapters(record, held, offer),
    }
    return Restored(values, notes)


def _numbered(prompt: Prompt) -> Prompt:
    """Return a prompt with numbered slots in place of names."""
    numbers = iter(range(1, len(prompt.images) + 1))
    parts = tuple(
        replace(part, path="", slot=next(numbers)) if isinstance(part, ImageRef) else part for part in prompt.parts
    )
    return Prompt(parts=parts)


def _find_image(sha256: str, name: str, held: Sequence[tuple[Any, Upload]]) -> Any:
    """Return the upload with this hash. Raises: MissingError."""
    for item, upload in held:
        if upload.file.sha256 == sha256:
            return {**dict(item), "weight": 1.0}  # the weight is in the prompt
    for example in EXAMPLES:
        path = find_shipped(f"nano/{example}")
        if path is not None and read_image(path).sha256 == sha256:
            return example_item(example)
    raise MissingError(f"the image {name} it was made from is not on this page; add it, then drop this one again")


def _adapters(record: Record, held: Sequence[tuple[Any, Upload]], offer: Offer) -> dict[str, Any]:
    values: dict[str, Any] = {"lora": NONE, "lora_scale": 1.0, "control": NONE, "control_scale": 1.0, "ready": False}
    for entry in record.adapters:
        if entry.type == "lora":
            values |= {"lora": _offered_lora(entry.sha256, entry.name, offer), "lora_scale": entry.scale}
        elif entry.kind in offer.controls:
            image = _find_image(entry.image.sha256, entry.image.name, held)
            values |= {
                "control": entry.kind,
                "control_scale": entry.scale,
                "ready": entry.ready,
                "control_images": [image],
            }
        else:
            raise MissingError(f"it was made with a ControlNet {entry.kind}, which this page does not offer")
    return values


def _offered_lora(sha256: str, name: str, offer: Offer) -> str:
    for label, location in offer.loras.items():
        path = find_adapter(location) or Path(location)
        if hash_files(lora_files(lora_file(path))) == sha256:
            return label
    raise MissingError(f"it was made with the LoRA {name}, which this page does not offer")

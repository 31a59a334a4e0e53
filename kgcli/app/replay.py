"""How a dropped image was made, as values for the page's fields; its inputs are found among uploads and examples."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgcli.app.examples import example_item, example_path
from kgcli.app.limits import NONE, RANGES
from kgcli.app.settings import Offer
from kgcli.app.uploads import Upload, read_bytes
from kgcli.config import SamplingConfig
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import KgError, MissingError
from kgcli.files import sha256
from kgcli.inference.adapters.named import Source, find_controlnet, find_maker
from kgcli.inference.replay import Adapter, Input, Record, read_record
from kgcli.weights.hashes import hash_files
from kgcli.weights.lora.header import lora_file, lora_files
from kgcli.weights.shipped import find_adapter
from kgcli.world.examples import EXAMPLES

if TYPE_CHECKING:
    from kgcli.inference.model import Model

ROUNDING = "the image will differ slightly"


@dataclass(frozen=True)
class Restored:
    """Values of the page's fields, and notes about what could not be restored."""

    values: dict[str, Any]  # by the field's name; `images` are uploads as the page holds them
    notes: list[str]


def restore(item: Any, model: Model, held: Sequence[tuple[Any, Upload]], offer: Offer) -> Restored:
    """Return the values that made a dropped image; `held` are the page's images as sent and as read.

    Raises: MissingError for an image without metadata, ImageError for another file.
    """
    record, sampling, prompt = _read(item)
    images = [_find_image(one.sha256, one.name, held) for one in record.images]
    values = {
        **{key: getattr(sampling, key) for key in ("width", "height", "guidance_scale", "scheduler")},
        "steps": sampling.num_inference_steps,
        "seed": record.seed,
        "negative_prompt": Prompt(parts=(record.negative_prompt,)).format() if record.negative_prompt else "",
        "prompt": _numbered(prompt).format(),
        "images": images,
        **_adapters(record, held, offer),
    }
    notes = [
        *_notes_on_settings(record, sampling, model),
        *_keep_in_range(values),
        *_notes_on_adapters(record, model, offer),
        *_notes_on_rounding(record, model),
    ]
    return Restored(values, notes)


def _read(item: Any) -> tuple[Record, SamplingConfig, Prompt]:
    """Read the metadata of a dropped image. Raises: MissingError, ImageError."""
    name, data = read_bytes(item)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{Path(name).suffix.lower()}"
        path.write_bytes(data)
        try:
            return read_record(path)
        except KgError as error:
            raise type(error)(str(error).replace(str(path), name)) from None


def _notes_on_settings(record: Record, sampling: SamplingConfig, model: Model) -> Iterator[str]:
    """Yield a note for another model, and for a setting that the page has no field for."""
    folder = model.folder
    if (record.model.sha256, record.decoder.sha256) != (folder.sha256, folder.decoder_sha256):
        yield f"it was made by the model {record.model.name}, not by {folder.name}: the image will differ"
    rescale, here = sampling.guidance_rescale, folder.cfg.generation.guidance_rescale
    if rescale is not None and rescale != here:
        yield f"it was made with a guidance rescale of {rescale}, this page uses {here}: the image will differ"


def _keep_in_range(values: dict[str, Any]) -> list[str]:
    """Bring values into the range of their sliders; return a note for each that was outside."""
    notes = []
    for name, (least, most) in RANGES.items():
        value = values[name]
        if value is not None and not least <= value <= most:
            values[name] = min(max(value, least), most)
            label = name.replace("_", " ")
            notes.append(f"its {label} was {value:g}, this page goes to {values[name]:g}: the image will differ")
    return notes


def _notes_on_adapters(record: Record, model: Model, offer: Offer) -> Iterator[str]:
    """Yield a note for each adapter that is left out, as the page attaches one LoRA and one ControlNet, and for a
    ControlNet or a model of its maps with other weights than those here.

    Weights on the Hub have no hash, and are told apart by name.
    """
    loras, controls = _by_type(record)
    for entry in controls[-1:]:
        network = find_controlnet(entry.kind, offer.controls[entry.kind], model.folder)
        maker = None if entry.map_model is None or entry.ready else find_maker(entry.kind, None)
        for what, then, here in (("ControlNet", entry.model, network), ("maps", entry.map_model, maker)):
            if then is not None and here is not None and not _same(then, here):
                yield f"its {what} ({entry.kind}) had the weights {then.name}, here {here.name}: the image will differ"
    for entry in loras[:-1]:
        yield f"the LoRA {entry.name} is left out, as this page takes one: the image will differ"
    for entry in controls[:-1]:
        yield f"the ControlNet {entry.kind} is left out, as this page takes one: the image will differ"


def _same(then: Input, here: Source) -> bool:
    """Tell whether recorded weights are those of a source."""
    if then.sha256 and here.sha256:
        return then.sha256 == here.sha256
    return (then.name, then.sha256) == (here.name, here.sha256)


def _notes_on_rounding(record: Record, model: Model) -> Iterator[str]:
    """Yield a note for each thing that rounding depends on and that is not as it was."""
    if record.batch.size > 1:
        yield f"it was made in a batch of {record.batch.size}, this page makes images one by one: {ROUNDING}"
    now = _kind(model.device)
    made_on = now if record.device is None else _kind(record.device)  # older images hold neither device nor threads
    compared: list[tuple[str, str | int | None, str | int | None]] = [
        ("device", made_on, now),
        ("dtype", record.dtype, model.dtype),
        ("quantize", record.quantize, model.pipeline.model.quantize),
        ("compile", record.compile, model.compiled),
    ]
    if made_on == now:
        compared.append(("threads", record.threads or model.threads, model.threads))
    for name, then, here in compared:
        if then != here:
            yield f"it was made with {name} {_word(then)}, this page runs with {_word(here)}: {ROUNDING}"


def _kind(device: str) -> str:
    """Return the kind of a device: one GPU rounds as the next."""
    return device.partition(":")[0]


def _word(value: str | int | None) -> str:
    """Return a setting's value in a word."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _numbered(prompt: Prompt) -> Prompt:
    """Return a prompt with numbered slots in place of names."""
    numbers = iter(range(1, len(prompt.images) + 1))
    parts = tuple(
        replace(part, path="", slot=next(numbers)) if isinstance(part, ImageRef) else part for part in prompt.parts
    )
    return Prompt(parts=parts)


def _find_image(digest: str, name: str, held: Sequence[tuple[Any, Upload]]) -> Any:
    """Return the upload with this hash. Raises: MissingError."""
    for item, upload in held:
        if upload.file.sha256 == digest:
            return {**dict(item), "weight": 1.0}  # the weight is in the prompt
    for example in EXAMPLES:
        if sha256(example_path(example)) == digest:
            return example_item(example)
    raise MissingError(f"the image {name} it was made from is not on this page; add it, then drop this one again")


def _adapters(record: Record, held: Sequence[tuple[Any, Upload]], offer: Offer) -> dict[str, Any]:
    values: dict[str, Any] = {"lora": NONE, "lora_scale": 1.0, "control": NONE, "control_scale": 1.0, "ready": False}
    loras, controls = _by_type(record)
    for entry in loras[-1:]:
        values |= {"lora": _offered_lora(entry.sha256, entry.name, offer), "lora_scale": entry.scale}
    for entry in controls[-1:]:
        if entry.kind not in offer.controls:
            raise MissingError(f"it was made with a ControlNet {entry.kind}, which this page does not offer")
        image = _find_image(entry.image.sha256, entry.image.name, held)
        values |= {
            "control": entry.kind,
            "control_scale": entry.scale,
            "ready": entry.ready,
            "control_images": [image],
        }
    return values


def _by_type(record: Record) -> tuple[list[Adapter], list[Adapter]]:
    """Return the LoRAs and the ControlNets of a record."""
    loras = [entry for entry in record.adapters if entry.type == "lora"]
    return loras, [entry for entry in record.adapters if entry.type != "lora"]


def _offered_lora(sha256: str, name: str, offer: Offer) -> str:
    for label, location in offer.loras.items():
        path = find_adapter(location) or Path(location)
        if hash_files(lora_files(lora_file(path))) == sha256:
            return label
    raise MissingError(f"it was made with the LoRA {name}, which this page does not offer")

"""Images that the page sends inside its requests: decoded, cropped and identified, never read from a path.

An upload is a JSON object:

    name    base name of the file, for the metadata
    data    the file's bytes in base64, at most MAX_BYTES
    weight  0 to 2, default 1, as `<image:-1|weight=...>`
    crop    left, top, right, bottom as fractions of the upright image, or null
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kgcli.app.limits import MAX_BYTES
from kgcli.data.images import ImageFile, decode_image
from kgcli.data.prompt import MAX_WEIGHT
from kgcli.errors import ImageError, UsageError, printable

MAX_NAME = 100  # characters
LEAST_CROP = 8  # pixels of either side


@dataclass(frozen=True)
class Upload:
    """An uploaded image and its weight."""

    file: ImageFile
    weight: float = 1.0


class _Item(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    name: str = Field(default="image.png", max_length=4096)
    data: str
    weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    crop: tuple[float, float, float, float] | None = None


def read_uploads(items: Any, most: int) -> list[Upload]:
    """Return the images of a request, at most `most`.

    Raises: UsageError for a value of another form, ImageError for a file that is not an image.
    """
    items = [] if items in (None, "") else items
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise UsageError("images is not a list; give a list of objects with name and data")
    if len(items) > most:
        raise UsageError(f"{len(items)} images were given; at most {most} can be used here")
    return [_read_upload(item, number) for number, item in enumerate(items, start=1)]


def read_bytes(item: Any, number: int = 1) -> tuple[str, bytes]:
    """Return the name and the bytes of an uploaded file.

    Raises: UsageError, ImageError.
    """
    parsed = _parse(item, number)
    return base_name(parsed.name), _decode(parsed, number)


def base_name(name: str) -> str:
    """Return a file name without folders, control characters and excess length."""
    last = PureWindowsPath(PurePosixPath(name).name).name  # a browser on any system may have sent it
    stem, dot, suffix = printable(last).rpartition(".")
    short = f"{stem[: MAX_NAME - len(suffix) - 1]}{dot}{suffix}"[-MAX_NAME:]
    return short.strip(". ") or "image.png"


def _read_upload(item: Any, number: int) -> Upload:
    parsed = _parse(item, number)
    name, data = base_name(parsed.name), _decode(parsed, number)
    image = decode_image(data, f"image {number} ({name})")
    if parsed.crop is not None and parsed.crop != (0, 0, 1, 1):
        cropped = io.BytesIO()
        image = image.crop(_box(parsed.crop, image.size, number))
        image.save(cropped, "PNG")
        name, data = f"{Path(name).stem}-crop.png", cropped.getvalue()
    return Upload(ImageFile(Path(name), name, hashlib.sha256(data).hexdigest(), image), parsed.weight)


def _parse(item: Any, number: int) -> _Item:
    try:
        return _Item.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UsageError(f"image {number} cannot be read: {where}: {first['msg']}") from None


def _decode(item: _Item, number: int) -> bytes:
    text = item.data
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) * 3 // 4 > MAX_BYTES:
        raise ImageError(f"image {number} is too large: more than {MAX_BYTES >> 20} MiB; make it smaller")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"image {number} cannot be read: its data are not base64 of an image file") from None
    if not data:
        raise ImageError(f"image {number} is empty (0 bytes)")
    return data


def _box(crop: tuple[float, float, float, float], size: tuple[int, int], number: int) -> tuple[int, int, int, int]:
    """Return a crop in pixels. Raises: UsageError if it is outside the image or too small."""
    left, top, right, bottom = crop
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError(f"the crop of image {number} is outside the image")
    width, height = size
    box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    if min(box[2] - box[0], box[3] - box[1]) < LEAST_CROP:
        raise UsageError(
            f"the crop of image {number} is too small; it needs at least {LEAST_CROP} x {LEAST_CROP} pixels"
        )
    return box

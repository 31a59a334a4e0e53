"""The contents of a row of a tar: a record with its images, no sample at all, or a fault.

All that read rows ask here, so that training, checks, statistics, construction and import take the same rows. A row of
another program is an image, its caption in .txt or .json, or both; its suffixes may be in capitals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from kgcli.data.images import decode_image
from kgcli.data.shards.records import KINDS, MAX_RECORD_BYTES, Compositional, Pair, Record, Text, record_of
from kgcli.errors import MissingError, printable
from kgcli.reading import parse_json

# Suffixes of other programs' images -> ours; the first that a row has is its image.
IMAGES = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
CAPTIONS = ("caption", "text", "TEXT")  # names under which a foreign JSON keeps its caption
TEXTS = ("json", "txt")  # suffixes of the members that tell what a row is
IMAGE = "image"  # kind of a foreign row that is an image alone


@dataclass(frozen=True)
class Contents:
    """The record of a row, and which of its members are the record's images."""

    record: Record
    members: Mapping[str, str]  # image that the record names -> member of the row
    kind: str  # the record's, or IMAGE for an image without a caption
    is_foreign: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)  # all that the JSON of a foreign row says

    def images(self, content: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the files of the record's images by the names it gives them, from the files of the row."""
        return {image: content[member] for image, member in self.members.items()}


class NoSample(Exception):
    """A group of files that is no row; the message is why."""


class NotDownloaded(NoSample):
    """A download that failed."""


def is_text(suffix: str) -> bool:
    """Tell if a member is one of those that `read_contents` reads."""
    return suffix.lower() in TEXTS


def read_contents(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Contents:
    """Return the contents of a row, of whose files only .json and .txt are read.

    Args:
        sizes: bytes of each member by suffix
        read: gives the bytes of a member

    Raises: NoSample: the files are no sample; MissingError: they are one that is damaged.
    """
    value = _read_json(sizes, read)
    told = value if isinstance(value, dict) else {}
    if told.get("kind") in KINDS:
        record = record_of(told, "its JSON")
        if absent := next((image for image in record.images if image not in sizes), None):
            raise MissingError(f"its JSON names {absent}, which the shard does not hold")
        return Contents(record, {image: image for image in record.images}, record.kind)
    return _read_foreign(told, sizes, read)


def open_images(record: Record, images: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """Return the images of a record, decoded; one that is bad makes the row bad, whatever a sample shows of it.

    Raises: MissingError, ImageError.
    """
    opened = {name: decode_image(data, f"its {name}") for name, data in images.items()}
    if isinstance(record, Compositional):
        for entity in record.entities:
            if entity.crop_on_white is None and entity.mask is not None:  # which cuts its image on white out
                mask = opened[entity.mask].convert("L")
                if mask.size != opened[record.image].size or mask.getbbox() is None:
                    raise MissingError(f"the mask of {entity.noun!r} is empty or not as large as the image")
    return opened


def main_image(names: Iterable[str]) -> str | None:
    """Return the member of a foreign row that is its image, without a number before its suffix."""
    by_suffix: dict[str, str] = {}
    for name in names:
        by_suffix.setdefault(name.lower(), name)
    return next((by_suffix[suffix] for suffix in IMAGES if suffix in by_suffix), None)


def _read_foreign(told: Mapping[str, Any], sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Contents:
    image, caption = main_image(sizes), _read_caption(told, sizes, read)
    origin = told["url"] if isinstance(told.get("url"), str) else ""
    if image is not None:
        own = IMAGES[image.lower()]
        pair = Pair(image=own, caption=caption or "", origin=origin)
        return Contents(pair, {own: image}, pair.kind if caption else IMAGE, True, told)
    if isinstance(told.get("status"), str):  # img2dataset's record of a download
        raise NotDownloaded(f"it was not downloaded: {str(told.get('error_message') or told['status'])[:200]}")
    if caption is None:
        raise NoSample(f"it holds no image ({', '.join(IMAGES)}) and no text")
    return Contents(Text(text=caption, origin=origin), {}, "text", True, told)


def _read_json(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Any:
    data = _read_text(sizes, "json", read)
    # Metadata of others may hold NaN, as img2dataset writes it for an empty cell; no field of ours can.
    return None if data is None else parse_json(data, name="its JSON", error=MissingError, allow_nan=True)


def _read_caption(told: Mapping[str, Any], sizes: Mapping[str, int], read: Callable[[str], bytes]) -> str | None:
    """Return the caption or text of a foreign row, None for one that has none."""
    in_json = next((told[name].strip() for name in CAPTIONS if isinstance(told.get(name), str)), "")
    data = _read_text(sizes, "txt", read)
    if data is None:
        return in_json or None
    try:
        return " ".join(data.decode("utf-8-sig").split()) or in_json
    except UnicodeDecodeError as error:
        raise MissingError(f"its .txt is not UTF-8 text (byte {error.start})") from None


def _read_text(sizes: Mapping[str, int], suffix: str, read: Callable[[str], bytes]) -> bytes | None:
    name = next((name for name in sizes if name.lower() == suffix), None)
    if name is None:
        return None
    if sizes[name] > MAX_RECORD_BYTES:
        message = f"its .{printable(name)} is too large: {sizes[name]:,} bytes; the limit is {MAX_RECORD_BYTES:,}"
        raise MissingError(message)
    return read(name)

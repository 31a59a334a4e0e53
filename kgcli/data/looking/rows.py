"""Rows of shards read in order by walking the tar, without the index: for checks, statistics and construction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kgcli.data.shards.records import Pair, Record, Text, parse_record
from kgcli.data.shards.tars import KeyFiles, walk_tar
from kgcli.errors import KgError, MissingError, printable
from kgcli.reading import parse_json

FOREIGN_IMAGES = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}  # suffix of others -> ours


@dataclass(frozen=True)
class SeenRow:
    """A row of a tar: its record and the images it names, or what is wrong with it."""

    shard: Path
    key: str
    record: Record | None = None
    images: dict[str, bytes] = field(default_factory=dict, repr=False)
    members: dict[str, bytes] = field(default_factory=dict, repr=False)  # all its files by suffix, in order
    places: dict[str, int] = field(default_factory=dict, repr=False)  # offset in the tar of each file's bytes
    fault: str = ""

    @property
    def origin(self) -> str:
        """Shard and key, for messages."""
        return f"{self.shard.name} {printable(self.key)}"


def shards_of(path: Path) -> list[Path]:
    """Return the tars of a folder by name, or a tar itself. Raises: MissingError without any."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise MissingError(f"there is no file or folder {printable(path)}")
    found = sorted(one for one in path.glob("*.tar") if not one.name.startswith("."))
    if not found:
        raise MissingError(f"{printable(path)} holds no shards (*.tar)")
    return found


def read_rows(shard: Path) -> Iterator[SeenRow]:
    """Yield the rows of a tar; what cannot be read is a row with a fault, the end of a cut tar among them."""
    key = ""
    try:
        for found in walk_tar(shard):
            key = found.key
            yield _row(shard, found)
    except MissingError as error:
        yield SeenRow(shard, key, fault=str(error).replace(shard.name, "the tar", 1))


def _row(shard: Path, files: KeyFiles) -> SeenRow:
    key, members, places = files.key, files.members, files.places
    name = f"{shard.name} {printable(key)}"
    try:
        record = _record(members, name)
        if record is None:
            return SeenRow(shard, key, None, {}, members, places, "it holds no record, and no image with a caption")
        # The files of other programs have their own suffixes; those of ours are named by the record.
        found = {FOREIGN_IMAGES.get(suffix.lower(), suffix): data for suffix, data in members.items()}
        absent = next((image for image in record.images if image not in found), None)
        if absent is not None:
            return SeenRow(shard, key, None, {}, members, places, f"its image {absent} is not there")
        return SeenRow(shard, key, record, {image: found[image] for image in record.images}, members, places)
    except KgError as error:
        return SeenRow(shard, key, None, {}, members, places, str(error).removeprefix(name).lstrip(": "))


def _record(members: dict[str, bytes], name: str) -> Record | None:
    """Return the record of a row: ours, or of another program an image with its caption, or a text."""
    told = {}
    if "json" in members:
        value = parse_json(members["json"], name=name)
        if isinstance(value, dict) and "kind" in value:
            return parse_record(members["json"], name)
        told = value if isinstance(value, dict) else {}
    caption = members["txt"].decode("utf-8", "replace") if "txt" in members else told.get("caption")
    if not isinstance(caption, str):
        return None
    image = next((ours for suffix, ours in FOREIGN_IMAGES.items() if suffix in members), None)
    url = told.get("url")
    origin = url if isinstance(url, str) else ""
    if image:
        return Pair(image=image, caption=caption.strip(), origin=origin)
    return Text(text=caption, origin=origin) if "txt" in members else None

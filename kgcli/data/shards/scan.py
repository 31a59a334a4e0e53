"""The index of a WebDataset tar that has none, from its headers, as LAION and COYO come from img2dataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from PIL import Image

from kgcli.data.images import DECODER_ERRORS, FORMATS
from kgcli.data.shards import storage
from kgcli.data.shards.layout import index_schema, pyarrow_parts
from kgcli.data.shards.records import KINDS, MAX_RECORD_BYTES
from kgcli.data.shards.tars import split_name
from kgcli.errors import MissingError

IMAGES = ("jpg", "jpeg", "png", "webp")  # of foreign shards: the first that a row has is its image
CAPTIONS = ("caption", "text", "TEXT")  # names under which a foreign JSON keeps its caption
IMAGE = "image"  # kind of a foreign row that is an image alone
MAX_NAME = 1024  # characters of a member's name


@dataclass
class Scan:
    """The contents of a tar by its headers: its rows, how many of its groups are no sample, and a fault."""

    table: Any  # with the columns of `index_schema`
    num_skipped: int = 0  # groups of members that are neither an image nor words, as failed downloads are
    fault: str = ""  # how the tar is damaged


@dataclass
class _Group:
    """Members of a tar that share a key."""

    key: str
    members: list[dict[str, Any]] = field(default_factory=list)

    def place(self, name: str) -> tuple[int, int] | None:
        """Return offset and size of a member."""
        return next(((one["offset"], one["size"]) for one in self.members if one["name"] == name), None)


def scan_tar(place: str) -> Scan:
    """Read the headers of a tar, its JSON texts and the first bytes of its images.

    Raises: MissingError where it is not there.
    """
    found = storage.stamp(place)
    if found is None:
        raise MissingError(f"there is no shard {place}")
    pyarrow, _ = pyarrow_parts()
    rows, skipped, fault = [], 0, ""
    with storage.open_stream(place, found.size) as stream:
        try:
            for group in _groups(stream, found.size):
                row = _row(group, stream)
                skipped += row is None
                rows += [row] if row else []
        except (tarfile.TarError, ValueError, EOFError) as error:
            fault = f"cut short or damaged after {len(rows) + skipped} rows ({' '.join(str(error).split())})"
    return Scan(pyarrow.Table.from_pylist(rows, schema=index_schema()), skipped, fault)


def caption_of(value: Any) -> str:
    """Return the caption that the JSON of a foreign row holds; empty without one."""
    given = value if isinstance(value, dict) else {}
    return next((given[name].strip() for name in CAPTIONS if isinstance(given.get(name), str)), "")


def main_image(names: list[str]) -> str | None:
    """Return the member of a row that is its image, without a number before its suffix."""
    return next((name for suffix in IMAGES for name in names if name.lower() == suffix), None)


def _groups(stream: IO[bytes], size: int) -> Iterator[_Group]:
    """Yield the members of a tar by key; neighbours with the same one belong together, as for WebDataset.

    Raises: TarError after the last whole group of a tar that is cut short.
    """
    current = _Group("")
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if not member.isfile() or len(member.name) > MAX_NAME:
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            key, suffix = split_name(member.name)
            if not suffix:
                continue
            if key != current.key and current.members:
                yield current
                current = _Group(key)
            current.key = key
            current.members.append({"name": suffix, "offset": member.offset_data, "size": member.size})
        if current.members:
            yield current
        stream.seek(tar.offset)  # where tarfile stopped, silently even at half a header
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of the archive")


def _row(group: _Group, stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the index's line of a group, None for one that is no sample."""
    names = [one["name"] for one in group.members]
    kind = _kind(group, names, stream)
    if kind is None:
        return None
    main = main_image(names)
    width, height = _size_of(group, main, stream) if main else (0, 0)
    return {
        "key": group.key,
        "kind": kind,
        "members": group.members,
        "width": width,
        "height": height,
        "num_tokens": 0,
        "sha256": "",
        "flags": [],
    }


def _kind(group: _Group, names: list[str], stream: IO[bytes]) -> str | None:
    value = None
    if (place := group.place("json")) is not None and place[1] <= MAX_RECORD_BYTES:
        try:
            value = json.loads(_read(stream, *place))
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict) and value.get("kind") in KINDS:
        return str(value["kind"])
    if "txt" in names or caption_of(value):
        return "pair" if main_image(names) else "text"
    return IMAGE if main_image(names) else None


def _size_of(group: _Group, name: str, stream: IO[bytes]) -> tuple[int, int]:
    place = group.place(name)
    assert place is not None
    return header_size(cast(IO[bytes], _Part(stream, *place)))


def header_size(file: IO[bytes]) -> tuple[int, int]:
    """Return the size of an image in pixels from its header, zeros where that cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return 0, 0


def _read(stream: IO[bytes], offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


class _Part(io.RawIOBase):
    """A member as a file for Pillow, which reads no more of it than its header."""

    def __init__(self, stream: IO[bytes], offset: int, size: int) -> None:
        self.stream, self.offset, self.size, self.at = stream, offset, size, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        left = self.size - self.at
        data = _read(self.stream, self.offset + self.at, left if size < 0 else min(size, left))
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        """Return the place."""
        return self.at

"""The index of a WebDataset tar that has none, from its headers, as LAION and COYO come from img2dataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

from PIL import Image

from kgcli.data.images import DECODER_ERRORS, FORMATS
from kgcli.data.shards import storage
from kgcli.data.shards.contents import NoSample, is_text, read_contents
from kgcli.data.shards.filters import FAULT, told_text
from kgcli.data.shards.layout import pyarrow_parts, scan_schema
from kgcli.data.shards.records import MAX_RECORD_BYTES
from kgcli.data.shards.tars import KeyPlaces, Place, read_place, size_fault, walk_places
from kgcli.data.where import FIRST_ROWS
from kgcli.errors import MissingError


@dataclass
class Scan:
    """The contents of a tar by its headers: its rows, how many of its groups are no sample, and a fault."""

    table: Any  # with the columns of `scan_schema`
    num_skipped: int = 0  # groups of members that are neither an image nor words, as failed downloads are
    fault: str = ""  # how the tar is damaged


def scan_tar(place: str) -> Scan:
    """Read the headers of a tar, its JSON texts and the first bytes of its images.

    Raises: MissingError where it is not there.
    """
    found = storage.stamp(place)
    pyarrow, _ = pyarrow_parts()
    rows, skipped, fault = [], 0, ""
    with storage.open_stream(place, found.size) as stream:
        try:
            for group in walk_places(stream, found.size):
                row = _row(group, stream)
                skipped += row is None
                rows += [row] if row else []
        except (tarfile.TarError, ValueError, EOFError) as error:
            fault = f"cut short or damaged after {len(rows) + skipped} rows ({' '.join(str(error).split())})"
    return Scan(pyarrow.Table.from_pylist(rows, schema=scan_schema()), skipped, fault)


def first_columns(place: str, size: int) -> Iterator[Collection[str]]:
    """Yield the columns of the first rows of a tar that another program wrote, by their JSON texts.

    Args:
        size: of the tar in bytes

    Raises: MissingError where it cannot be read.
    """
    with storage.open_stream(place, size) as stream:
        with suppress(tarfile.TarError, ValueError, EOFError):  # for the scan to tell
            for group in islice(walk_places(stream, size), FIRST_ROWS):
                row = _row(group, stream)
                if row is not None and row["kind"] != FAULT:
                    yield json.loads(row["told"])


def _row(group: KeyPlaces, stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the index's line of a group, None for one that is no sample."""
    places = group.places
    texts = {  # read first: a server that fails is no fault of the row
        name: read_place(stream, place)
        for name, place in places.items()
        if is_text(name) and place.size <= MAX_RECORD_BYTES
    }
    try:
        if fault := size_fault(places):
            raise MissingError(fault)
        found = read_contents({name: place.size for name, place in places.items()}, texts.__getitem__)
        kind, main = found.kind, found.members.get(found.record.main_image or "")
        told = told_text(found.told)
    except NoSample:
        return None
    except MissingError:
        kind, main, told = FAULT, None, "{}"
    width, height = header_size(cast(IO[bytes], _Part(stream, places[main]))) if main else (0, 0)
    return {
        "key": group.key,
        "kind": kind,
        "members": [{"name": name, "offset": place.offset, "size": place.size} for name, place in places.items()],
        "width": width,
        "height": height,
        "num_tokens": 0,
        "sha256": "",
        "flags": [],
        "told": told,
    }


def header_size(file: IO[bytes]) -> tuple[int, int]:
    """Return the size of an image in pixels from its header, zeros where that cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return 0, 0


class _Part(io.RawIOBase):
    """A member as a file for Pillow, which reads no more of it than its header."""

    def __init__(self, stream: IO[bytes], place: Place) -> None:
        self.stream, self.offset, self.size, self.at = stream, place.offset, place.size, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        left = max(0, self.size - self.at)
        self.stream.seek(self.offset + self.at)
        data = self.stream.read(left if size < 0 else min(size, left))
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        """Return the place."""
        return self.at

"""WebDataset tars walked from end to end: the files of each key, and where the tar is cut or damaged."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from kgcli.data.images import MAX_BYTES
from kgcli.errors import MissingError, printable

MAX_NAME = 1024  # characters of a member's name
MAX_ROW_BYTES = 2**30  # from the first byte of a row's files to the last
_Taken = TypeVar("_Taken")
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError)  # raised where a tar is damaged


@dataclass(frozen=True)
class Place:
    """Bytes of a tar."""

    offset: int
    size: int


@dataclass(frozen=True)
class KeyPlaces:
    """The files of one key of a tar by suffix, in order, as places; of two with one name the last counts."""

    key: str
    places: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class KeyFiles:
    """The files of one key of a tar by suffix, in order, or why they are not read."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict, repr=False)
    places: dict[str, Place] = field(default_factory=dict, repr=False)
    fault: str = ""


def split_name(name: str) -> tuple[str, str]:
    """Return key and suffix of a member's name: what comes before and after the first dot of its last part.

    The suffix is empty for a file that belongs to no sample. Bytes that are not UTF-8 are written as escapes.
    """
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    folder, slash, last = name.removeprefix("./").rpartition("/")
    base, _, suffix = last.partition(".")
    return f"{folder}{slash}{base}", suffix if base and len(name) <= MAX_NAME else ""


def walk_places(stream: IO[bytes], size: int) -> Iterator[KeyPlaces]:
    """Yield the files of each key of a tar: neighbours whose folders are the same and whose names agree up to a dot.

    Only headers are read. The stream may be read elsewhere between two keys.

    Args:
        size: bytes of the tar

    Raises: TarError, ValueError, EOFError at the place where the tar is damaged, after the last whole key before it;
        also for one that ends without a tar's end mark, as a cut between two files leaves it.
    """
    found = KeyPlaces("")
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            key, suffix = split_name(member.name)
            if not member.isfile() or not suffix:
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            if key != found.key:
                if found.places:
                    yield found
                found = KeyPlaces(key)
            found.places[suffix] = Place(member.offset_data, member.size)
        stream.seek(tar.offset)  # where tarfile stopped, silently even at half a header
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
    if found.places:
        yield found


def size_fault(places: Mapping[str, Place]) -> str:
    """Return why the files of a row are too large to be read, an empty text for those that are not."""
    name, largest = max(((name, place.size) for name, place in places.items()), key=lambda one: one[1])
    if largest > MAX_BYTES:
        return f"its {printable(name)[:100]} has {largest:,} bytes; the limit is {MAX_BYTES:,}"
    length = max(one.offset + one.size for one in places.values()) - min(one.offset for one in places.values())
    return f"its files take {length:,} bytes; the limit is {MAX_ROW_BYTES:,}" if length > MAX_ROW_BYTES else ""


def walk_tar(path: Path) -> Iterator[KeyFiles]:
    """Yield the files of each key, read; those that are too large with a fault in their place.

    Raises: MissingError at the place where the tar is damaged, after what comes before it, as `walk_places`.
    """
    return _walk(path, _read)


def walk_keys(path: Path) -> Iterator[KeyPlaces]:
    """Yield the places of the files of each key, of which only headers are read.

    Raises: MissingError, as `walk_tar`.
    """
    return _walk(path, lambda _, found: found)


def _walk(path: Path, take: Callable[[IO[bytes], KeyPlaces], _Taken]) -> Iterator[_Taken]:
    """Yield what `take` makes of each key of a tar. Raises: MissingError that names the last key before a damage."""
    key = ""
    try:
        with path.open("rb") as file:
            for found in walk_places(file, path.stat().st_size):
                key = found.key
                yield take(file, found)
    except _DAMAGE as error:
        after = f"after {printable(key)}" if key else "from its start"
        raise MissingError(f"{path.name} is damaged {after}: {' '.join(str(error).split())[:200]}") from None


def _read(file: IO[bytes], found: KeyPlaces) -> KeyFiles:
    if fault := size_fault(found.places):
        return KeyFiles(found.key, {}, found.places, fault)
    members = {name: read_place(file, place) for name, place in found.places.items()}
    return KeyFiles(found.key, members, found.places)


def read_place(stream: IO[bytes], place: Place) -> bytes:
    """Return the bytes of a place. Raises: EOFError where the file ends before."""
    stream.seek(place.offset)
    data = stream.read(place.size)
    if len(data) != place.size:
        raise EOFError("unexpected end of data")
    return data

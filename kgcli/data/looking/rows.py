"""Rows of shards read in order by walking the tar, without the index: for checks, statistics and construction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kgcli.data.shards.contents import NoSample, read_contents
from kgcli.data.shards.records import Record
from kgcli.data.shards.tars import KeyFiles, Place, walk_tar
from kgcli.errors import MissingError, printable


@dataclass(frozen=True)
class SeenRow:
    """A row of a tar: its record and the images it names, or what is wrong with it, or why it is no sample."""

    shard: Path
    key: str
    record: Record | None = None
    images: dict[str, bytes] = field(default_factory=dict, repr=False)
    members: dict[str, bytes] = field(default_factory=dict, repr=False)  # all its files by suffix, in order
    places: dict[str, Place] = field(default_factory=dict, repr=False)  # of each file; none where the tar itself ends
    fault: str = ""
    left_out: str = ""  # why these files are no sample, which is no fault

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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as "1 row" or "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def no_samples(number: int) -> str:
    """Return a number of groups of files as words."""
    return f"{counted(number, 'group')} of files that {'is not a sample' if number == 1 else 'are not samples'}"


def _row(shard: Path, files: KeyFiles) -> SeenRow:
    seen = SeenRow(shard, files.key, members=files.members, places=files.places, fault=files.fault)
    if files.fault:
        return seen
    try:
        found = read_contents({name: len(data) for name, data in files.members.items()}, files.members.__getitem__)
    except NoSample as error:
        return replace(seen, left_out=str(error))
    except MissingError as error:
        return replace(seen, fault=str(error))
    return replace(seen, record=found.record, images=found.images(files.members))

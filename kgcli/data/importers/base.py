"""The protocol of importers: an endless or finite list of items in a fixed order, each read when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kgcli.data.shards.records import Pair, Record
from kgcli.data.shards.write import as_member
from kgcli.data.where import Condition, look_for_columns, unmet
from kgcli.errors import MissingError, UsageError, printable

MAX_LINE = 512 * 2**20  # bytes of a line with images in base64

Filled = tuple[Record, dict[str, bytes]]  # a record and its images by member


@dataclass(frozen=True)
class Item:
    """One sample of a foreign data set: its place for messages, and how to read it (one record, several or none).

    `read` raises KgError where the item is damaged, and Skipped where the layout's own rules leave it out.
    """

    origin: str
    read: Callable[[], Iterable[Filled]]
    size: int | None = None  # bytes of its image or text where that is cheap to tell; tells sources apart


class Skipped(Exception):
    """An item that the rules of a layout leave out; the message is the rule."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import; an importer refuses those that it has no use for."""

    images: Path | None = None  # folder of the images that the source names
    columns: Mapping[str, str] = field(default_factory=dict)  # field of a record -> column of the source
    split: str = "train"
    all_captions: bool = False  # a row for each caption of an image, in place of its first
    as_published: bool = False  # leave out what the published loader loses
    where: tuple[Condition, ...] = ()  # conditions that an item's columns meet

    def images_of(self, layout: str, hint: str) -> Path:
        """Return the folder of images that a layout cannot do without.

        Raises: UsageError where none is given; MissingError where it is not there.
        """
        if self.images is None:
            raise UsageError(f"{layout} needs --images FOLDER, {hint}")
        if not self.images.is_dir():
            raise MissingError(f"there is no folder {printable(self.images)}")
        return self.images

    def check_columns(self, rows: Iterable[Collection[str]], source: str) -> None:
        """Check that a source has the columns of all conditions; a source without a row that can be read may have any.

        Args:
            rows: columns of each row that can be read, of which no more are asked for than it takes

        Raises: UsageError.
        """
        look_for_columns(self.where, rows, source)

    def check(self, cells: Mapping[str, Any]) -> None:
        """Check an item's columns against the conditions. Raises: Skipped for an item that one of them leaves out."""
        if reason := unmet(self.where, cells):
            raise Skipped(reason)


class Importer(Protocol):
    """A foreign layout: `items` yields the same items in the same order at every call."""

    name: str
    layout: str  # one line for the help text
    uses: frozenset[str]  # names of the fields of ImportOptions that it takes

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the items of a source.

        Raises: MissingError, UsageError where the source is not of this layout.
        """
        ...


@dataclass(frozen=True)
class BrokenItem:
    """Reader of an item that cannot be read: raises its fault when it is."""

    fault: Exception

    def __call__(self) -> Iterable[Filled]:
        raise self.fault


def broken(origin: str, fault: Exception) -> Item:
    """Return an item that fails with a fault when it is read."""
    return Item(origin, BrokenItem(fault))


def size_of(path: Path) -> int | None:
    """Return the bytes of a file, None where it cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def pair_of(data: bytes, caption: str, origin: str) -> Filled:
    """Return an image and its caption as a record. Raises: ImageError."""
    suffix, content = as_member(data, origin)
    return Pair(image=suffix, caption=caption, origin=origin), {suffix: content}


def number_images(images: Iterable[tuple[str, bytes]]) -> tuple[list[str], dict[str, bytes]]:
    """Return numbered members for files of images given by suffix, in order."""
    members, content = [], {}
    for number, (suffix, data) in enumerate(images):
        members.append(f"{number}.{suffix}")
        content[members[-1]] = data
    return members, content


def existing(source: str, *, what: str) -> Path:
    """Return the path of a source that is there. Raises: MissingError."""
    path = Path(source).expanduser()
    if not path.exists():
        raise MissingError(f"there is no {what} {path}")
    return path


def files_of(path: Path, suffixes: tuple[str, ...], *, what: str) -> list[Path]:
    """Return a file itself, or those of a folder with these suffixes, by name. Raises: MissingError without any."""
    from kgcli.data.entries import data_files

    found = [path] if path.is_file() else list(data_files(path, suffixes=suffixes))
    if not found:
        raise MissingError(f"{path} holds no {what} ({', '.join(suffixes)})")
    return found

"""The output of img2dataset, as LAION, COYO, CC3M and CC12M come: tar shards, or folders of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from kgcli.data.images import MAX_BYTES
from kgcli.data.importers.base import Filled, ImportOptions, Item, Skipped, broken, existing, pair_of, size_of
from kgcli.data.shards.contents import (
    IMAGE,
    NoSample,
    NotDownloaded,
    is_text,
    main_image,
    open_images,
    read_contents,
)
from kgcli.data.shards.records import Pair
from kgcli.data.shards.tars import Place, read_place, size_fault, walk_keys
from kgcli.data.where import FIRST_ROWS
from kgcli.errors import MissingError, reason
from kgcli.reading import read_bytes


class Img2Dataset:
    """Rows of WebDataset tars by shard and key; a tar that is cut short gives what comes before the cut.

    Images without a caption are left out, and counted, as downloads that failed and files that are no sample are.
    """

    name = "img2dataset"
    layout = "img2dataset's output (LAION, COYO, CC3M, CC12M): tars, or folders of .jpg, .txt and .json"
    uses = frozenset({"where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the rows of all shards."""
        folder = existing(source, what="folder or tar")
        options.check_columns(_columns(folder), source)
        num = 0
        for row in _rows(folder):
            num += 1
            yield row if isinstance(row, Item) else Item(row.origin, partial(_read, row, options), row.size)
        if not num:
            raise MissingError(f"{folder} holds no rows in tars and no images of img2dataset")


@dataclass(frozen=True)
class TarPlace:
    """The place of a file in a tar."""

    tar: Path
    place: Place

    def read(self) -> bytes:
        """Return the file's bytes. Raises: MissingError."""
        try:
            with self.tar.open("rb") as file:
                return read_place(file, self.place)
        except EOFError:
            raise MissingError(f"{self.tar.name} has become shorter") from None
        except OSError as error:
            raise MissingError(f"{self.tar.name} cannot be read: {reason(error)}") from None


@dataclass(frozen=True)
class _Row:
    """Files of one key: their sizes by suffix, and how to read them."""

    origin: str
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    size: int | None  # bytes of the files; of those in a folder, of the image


def _rows(folder: Path) -> Iterator[_Row | Item]:
    """Yield the rows of all shards, and an item for each fault of a tar."""
    for part in _parts(folder):
        yield from part


def _parts(folder: Path) -> Iterator[Iterator[_Row | Item]]:
    """Yield the rows of each tar, or of each folder of files where there are no tars."""
    tars = [folder] if folder.is_file() else sorted(folder.glob("*.tar"))
    yield from map(_of_tar, tars)
    folders = [] if tars else [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    yield from map(_of_folder, folders)


def _of_tar(path: Path) -> Iterator[_Row | Item]:
    origin = f"{path.name} ?"
    try:
        for found in walk_keys(path):
            origin = f"{path.name} {found.key}"
            if fault := size_fault(found.places):
                yield broken(origin, MissingError(f"{origin}: {fault}"))
                continue
            sizes = {name: place.size for name, place in found.places.items()}
            files = {name: TarPlace(path, place) for name, place in found.places.items()}
            yield _Row(origin, sizes, partial(read_member, files), sum(sizes.values()))
    except MissingError as error:
        yield broken(origin, error)


def _of_folder(folder: Path) -> Iterator[_Row]:
    for stem, files in files_of_images(folder).items():
        sizes = sizes_of(files)
        yield _Row(f"{folder.name}/{stem}", sizes, partial(read_one, files), sizes.get(main_image(files) or ""))


def files_of_images(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the images of a folder by name, each with the texts beside it: its files by suffix."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix[1:]
        if main_image([suffix]) or is_text(suffix):
            files.setdefault(path.stem, {})[suffix] = path
    return {stem: found for stem, found in files.items() if main_image(found)}


def sizes_of(files: Mapping[str, Path]) -> dict[str, int]:
    """Return the bytes of each file; one that cannot be looked at has none."""
    return {name: size for name, path in files.items() if (size := size_of(path)) is not None}


def read_member(files: Mapping[str, TarPlace], name: str) -> bytes:
    """Return the bytes of one of several files of a tar. Raises: MissingError."""
    return files[name].read()


def read_one(files: Mapping[str, Path], name: str) -> bytes:
    """Return the bytes of one of several files. Raises: MissingError."""
    return read_bytes(files[name], max_bytes=MAX_BYTES)


def _columns(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield what the JSON says of each of the first rows of all tars or folders, of which no images are read."""
    for part in _parts(folder):
        for row in islice(part, FIRST_ROWS):
            if isinstance(row, _Row):
                with suppress(NoSample, MissingError):
                    yield read_contents(row.sizes, row.read).told


def _read(row: _Row, options: ImportOptions) -> Iterable[Filled]:
    try:
        found = read_contents(row.sizes, row.read)
        options.check(found.told)
        if found.kind == IMAGE:
            raise Skipped("it has no caption")
        images = {name: row.read(member) for name, member in found.members.items()}
        if not found.is_foreign:
            open_images(found.record, images)
    except NotDownloaded:
        raise Skipped("it was not downloaded") from None
    except NoSample:
        raise Skipped("it holds no image and no text") from None
    except MissingError as error:
        raise MissingError(f"{row.origin}: {error}") from None
    if found.is_foreign and isinstance(found.record, Pair):
        place = f"{row.origin} {found.record.origin}".strip()
        return [pair_of(images[found.record.image], found.record.caption, place)]
    return [(found.record, images)]

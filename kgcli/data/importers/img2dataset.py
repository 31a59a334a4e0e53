"""The output of img2dataset, as LAION, COYO, CC3M and CC12M come: tar shards, or folders of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kgcli.data.images import MAX_BYTES
from kgcli.data.importers.base import Filled, ImportOptions, Item, broken, existing, pair_of, size_of
from kgcli.data.shards.contents import NoSample, is_text, main_image, open_images, read_contents
from kgcli.data.shards.records import Pair
from kgcli.data.shards.tars import walk_tar
from kgcli.data.where import check_columns
from kgcli.errors import MissingError
from kgcli.reading import read_bytes


class Img2Dataset:
    """Rows of WebDataset tars by shard and key; a tar that is cut short gives what comes before the cut."""

    name = "img2dataset"
    layout = "img2dataset's output (LAION, COYO, CC3M, CC12M): tars, or folders of .jpg, .txt and .json"
    uses = frozenset({"where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the rows of all shards."""
        folder = existing(source, what="folder or tar")
        if options.where:
            check_columns(options.where, _columns(folder), source)
        num = 0
        for row in _rows(folder):
            num += 1
            yield row if isinstance(row, Item) else Item(row.origin, partial(_read, row, options), row.size)
        if not num:
            raise MissingError(f"{folder} holds no rows in tars and no images of img2dataset")


@dataclass(frozen=True)
class _Row:
    """Files of one key: their sizes by suffix, and how to read them."""

    origin: str
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    size: int | None  # bytes of the files; of those in a folder, of the image


def _rows(folder: Path) -> Iterator[_Row | Item]:
    """Yield the rows of all shards, and an item for each fault of a tar."""
    tars = [folder] if folder.is_file() else sorted(folder.glob("*.tar"))
    for tar in tars:
        yield from _of_tar(tar)
    folders = [] if tars else [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for place in folders:
        yield from _of_folder(place)


def _of_tar(path: Path) -> Iterator[_Row | Item]:
    origin = f"{path.name} ?"
    try:
        for found in walk_tar(path):
            origin = f"{path.name} {found.key}"
            if found.fault:
                yield broken(origin, MissingError(f"{origin}: {found.fault}"))
                continue
            sizes = {name: len(data) for name, data in found.members.items()}
            yield _Row(origin, sizes, found.members.__getitem__, sum(sizes.values()))
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


def read_one(files: Mapping[str, Path], name: str) -> bytes:
    """Return the bytes of one of several files. Raises: MissingError."""
    return read_bytes(files[name], max_bytes=MAX_BYTES)


def _columns(folder: Path) -> list[str]:
    """Return the columns of the first row that tells any."""
    for row in _rows(folder):
        try:
            if isinstance(row, _Row) and (told := read_contents(row.sizes, row.read).told):
                return list(told)
        except (NoSample, MissingError):
            continue
    return []


def _read(row: _Row, options: ImportOptions) -> Iterable[Filled]:
    try:
        found = read_contents(row.sizes, row.read)
    except (NoSample, MissingError) as error:
        raise MissingError(f"{row.origin}: {error}") from None
    options.check(found.told)
    images = {name: row.read(member) for name, member in found.members.items()}
    if found.is_foreign and isinstance(found.record, Pair):
        place = f"{row.origin} {found.record.origin}".strip()
        return [pair_of(images[found.record.image], found.record.caption, place)]
    try:
        open_images(found.record, images)
    except MissingError as error:
        raise MissingError(f"{row.origin}: {error}") from None
    return [(found.record, images)]

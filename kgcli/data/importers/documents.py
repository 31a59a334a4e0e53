"""Interleaved documents: MMC4 and OBELICS, with their images downloaded to a folder beforehand."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kgcli.data.folders import check_below, read_below
from kgcli.data.images import MAX_BYTES
from kgcli.data.importers.base import (
    Filled,
    ImportOptions,
    Item,
    Skipped,
    broken,
    existing,
    files_of,
    number_images,
)
from kgcli.data.importers.img2dataset import TarPlace, files_of_images, read_member, read_one, sizes_of
from kgcli.data.shards.contents import NoSample, read_contents
from kgcli.data.shards.layout import pyarrow_parts
from kgcli.data.shards.records import Interleaved, Pair, Shown
from kgcli.data.shards.tars import size_fault, walk_keys
from kgcli.data.shards.write import as_member
from kgcli.errors import MissingError, printable
from kgcli.reading import parse_json, read_bytes

MAX_LINE = 64 * 2**20  # bytes of a document

Fragment = str | bytes  # a text, or the file of an image


class Mmc4:
    """MMC4's documents: each image before the sentence it was matched to; images that are not there are left out.

    Source: Multimodal C4 (arXiv:2304.06939).
    """

    name = "mmc4"
    layout = "MMC4's .jsonl or .jsonl.zip, with --images the folder of its images"
    uses = frozenset({"images"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the documents."""
        images = options.images_of(self.name, "in which the images have their image_name")
        for path in files_of(existing(source, what="file or folder"), (".jsonl", ".zip"), what="documents"):
            try:
                for number, line in enumerate(_text_lines(path), start=1):
                    origin = f"{path.name} line {number}"
                    yield Item(origin, partial(_read_mmc4, line, origin, images))
            except MissingError as error:
                yield broken(path.name, error)


class Obelics:
    """OBELICS' documents, whose images are addresses or, in some copies, files.

    Source: OBELICS (arXiv:2306.16527).
    """

    name = "obelics"
    layout = "OBELICS' .parquet, with --images the output of img2dataset for its addresses"
    uses = frozenset({"images"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the documents."""
        pyarrow, parquet = pyarrow_parts()
        by_url = None if options.images is None else UrlImages(options.images)
        for name, fault in by_url.faults.items() if by_url else ():
            yield broken(name, fault)
        for path in files_of(existing(source, what="file or folder"), (".parquet",), what="documents"):
            try:
                file = parquet.ParquetFile(path)
                if absent := {"images", "texts"} - set(file.schema_arrow.names):
                    raise MissingError(f"{path} has no column {sorted(absent)[0]}")
                number = 0
                for batch in file.iter_batches(batch_size=64, columns=["images", "texts"]):
                    for row in batch.to_pylist():
                        number += 1
                        origin = f"{path.name} row {number}"
                        yield Item(origin, partial(_read_obelics, row, origin, by_url))
            except (pyarrow.ArrowException, MissingError, OSError, ValueError) as error:
                yield broken(path.name, MissingError(f"{path.name} is damaged: {str(error)[:200]}"))


class UrlImages:
    """Images by address, of a folder that img2dataset wrote: tars, or folders of files; read when they are needed.

    `faults` holds those of tars that are damaged and of images whose record cannot be read, by place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, MissingError] = {}
        self._files: dict[str, Path | TarPlace] = {}
        for tar in sorted(folder.glob("*.tar")):
            self._note_tar(tar)
        for below in sorted(Path(one) for one, _, _ in os.walk(folder)):
            for stem, files in files_of_images(below).items():
                place = (below.relative_to(folder) / stem).as_posix()
                self._note(place, sizes_of(files), partial(read_one, files), files.__getitem__)

    def read(self, url: str) -> bytes | None:
        """Return the image of an address, None if it is not there. Raises: MissingError."""
        found = self._files.get(url)
        if isinstance(found, Path):
            return read_bytes(found, max_bytes=MAX_BYTES)
        return None if found is None else found.read()

    def _note_tar(self, tar: Path) -> None:
        try:
            for found in walk_keys(tar):
                place = f"{tar.name} {printable(found.key)}"
                if fault := size_fault(found.places):
                    self.faults[place] = MissingError(f"{place}: {fault}")
                    continue
                files = {name: TarPlace(tar, one) for name, one in found.places.items()}
                sizes = {name: one.size for name, one in found.places.items()}
                self._note(place, sizes, partial(read_member, files), files.__getitem__)
        except MissingError as error:
            self.faults[tar.name] = error

    def _note(
        self,
        place: str,
        sizes: Mapping[str, int],
        read: Callable[[str], bytes],
        file_of: Callable[[str], Path | TarPlace],
    ) -> None:
        """Note the image of a row by its address; files that are no download of img2dataset have none.

        The address is in the JSON: a caption in .txt is not read.
        """
        try:
            found = read_contents({name: size for name, size in sizes.items() if name.lower() != "txt"}, read)
        except NoSample:
            return
        except MissingError as error:
            self.faults[place] = MissingError(f"{place}: {error}")
            return
        if found.is_foreign and isinstance(found.record, Pair) and found.record.origin:
            self._files[found.record.origin] = file_of(found.members[found.record.image])


def _read_mmc4(line: bytes, origin: str, folder: Path) -> Iterable[Filled]:
    value = parse_json(line, name=origin)
    try:
        texts = [str(text) for text in value["text_list"]]
        places = [(int(image["matched_text_index"]), str(image["image_name"])) for image in value["image_info"]]
    except (KeyError, TypeError, ValueError):
        raise MissingError(f"{origin} has no text_list and image_info as MMC4 has them") from None
    fragments: list[Fragment] = []
    for number, text in enumerate(texts):
        names = [name for place, name in places if place == number]
        for name in names:
            check_below(folder, name, origin)
        fragments += [read_below(folder, name, origin) for name in names if (folder / name).is_file()]
        fragments.append(text if not fragments else " " + text)
    return _document(fragments, origin)


def _read_obelics(row: Any, origin: str, by_url: UrlImages | None) -> Iterable[Filled]:
    images, texts = row["images"] or [], row["texts"] or []
    if not isinstance(images, list) or not isinstance(texts, list):
        raise MissingError(f"{origin}: images and texts must be lists")
    if len(images) != len(texts):
        raise MissingError(f"{origin} has {len(images)} images for {len(texts)} texts; one of each place is empty")
    fragments: list[Fragment] = []
    for image, text in zip(images, texts, strict=True):
        if text:
            fragments.append(str(text))
        elif isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
            fragments.append(image["bytes"])
        elif isinstance(image, str) and by_url is not None and (data := by_url.read(image)) is not None:
            fragments.append(data)
    return _document(fragments, origin)


def _document(fragments: list[Fragment], origin: str) -> Iterable[Filled]:
    """Return the record of a document. Raises: Skipped for one without images."""
    files = [as_member(one, origin) for one in fragments if isinstance(one, bytes)]
    if not files:
        raise Skipped("none of its images is there")
    members, images = number_images(files)
    following = iter(members)
    parts = tuple(one if isinstance(one, str) else Shown(image=next(following)) for one in fragments)
    return [(Interleaved(fragments=parts, origin=origin), images)]


def _text_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, or of the files of a zip. Raises: MissingError where it cannot be read."""
    try:
        if path.suffix != ".zip":
            with path.open("rb") as file:
                yield from _split(file)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as inner:
                    yield from _split(inner)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise MissingError(f"{path.name} cannot be read: {str(error)[:200]}") from None


def _split(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        if line.strip():
            yield line

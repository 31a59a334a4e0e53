"""A user's own files as sources: captions, images with captions, and prompts with images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgcli.data.entries import data_files
from kgcli.data.images import SUFFIXES, open_image, square
from kgcli.data.prompt import Prompt
from kgcli.data.sample import Fragments, Sample, Target
from kgcli.data.sources.base import Source, Use
from kgcli.data.sources.rows import RowOrder, RowSource, stamp_of
from kgcli.data.sources.tables import BadLine, Line, read_lines, walk_lines
from kgcli.errors import ImageError, MissingError, PromptError
from kgcli.recipe import OnFault


@dataclass(frozen=True)
class Row:
    """One line of a file or image of a folder, checked; its images are opened when they are needed."""

    origin: str
    caption: str = ""
    prompt: Prompt | None = None
    images: tuple[Path, ...] = ()
    target: Path | None = None
    fault: str = ""  # why the line cannot be read

    @property
    def text(self) -> str:
        """Return the text of the row, without images."""
        if self.prompt is None:
            return self.caption
        return "".join(part for part in self.prompt.parts if isinstance(part, str))


class FileSource(RowSource):
    """Rows reshuffled in every epoch, so that each is taken n or n + 1 times, whatever the number of samples."""

    tells_rows = False  # the fingerprint has the times of files, not the words in them

    def __init__(
        self, rows: Sequence[Row], gives: frozenset[str], use: Use, seed: tuple[int, int], faults: OnFault = "stop"
    ) -> None:
        super().__init__(gives, len(rows), seed, faults)
        self.rows = list(rows)
        self.use = use
        self._order = RowOrder(len(rows), seed)

    def row_of(self, index: int) -> int:
        """Return the row of a sample."""
        return self._order.row(index)

    def load(self, row: int, number: int) -> Sample:
        """Return a row as a sample.

        Raises: ImageError that names the line and the image; MissingError for a bad line.
        """
        found = self.rows[row]
        target = None if found.target is None else partial(_open_target, found)
        fragments = self.told(row, number)  # which raises the fault of a bad line
        if found.prompt is not None:
            shown = tuple(
                square(_open(found, path), ref.fit) for ref, path in zip(found.prompt.images, found.images, strict=True)
            )
            words = "" if shown else found.text
            return Sample(fragments, shown, words, target, found.origin)
        images = () if found.target is None or self.use == "generate" else (_open(found, found.target),)
        return Sample(fragments, images, found.caption, target, found.origin)

    def told(self, row: int, number: int) -> Fragments:
        """Return the fragments of a row. Raises: MissingError for a bad line."""
        found = self.rows[row]
        if found.fault:
            raise MissingError(found.fault)
        if found.prompt is not None:
            return tuple(found.prompt.fragments)
        if found.target is None or self.use == "generate":
            return (found.caption,) if found.caption else ()
        return (None, " " + found.caption) if self.use == "read" else ()

    def place_of(self, row: int) -> tuple[str, str]:
        """Return file and line, or folder and image, of a row."""
        found = self.rows[row]
        if found.origin == str(found.target):
            return str(Path(found.origin).parent), Path(found.origin).name
        file, *place = found.origin.rsplit(" ", 2)  # as in "captions.txt line 3"
        return file, " ".join(place)

    def texts(self, num: int, seed: int) -> list[str]:
        """Return the words of `num` rows, or of all there are."""
        order = np.random.default_rng([22, seed]).permutation(len(self.rows))[:num]
        return [self.rows[row].text for row in order if self.rows[row].text]

    def content(self) -> dict[str, Any]:
        """Return a hash of the targets' names, sizes and times; where faults are skipped, one of all rows too."""
        targets, rows = hashlib.sha256(), hashlib.sha256()
        for row in self.rows:
            if row.target is not None:
                targets.update(os.fsencode(row.target.name) + f"\0{stamp_of(row.target)}\n".encode())
            if self.faults == "skip":
                told = [bool(row.fault), [[path.name, stamp_of(path)] for path in row.images]]
                rows.update(json.dumps([row.target is not None, *told]).encode())
        found = {"targets": targets.hexdigest(), "num": len(self.rows)}
        return found if self.faults == "stop" else {**found, "rows": rows.hexdigest()}


def open_file(kind: str, path: str, *, use: Use, seed: tuple[int, int], faults: OnFault = "stop") -> Source:
    """Open a source of a kind, every line checked and every image found.

    Args:
        kind: captions, images or prompts
        use: of an image that comes with a caption
        seed: of the order of rows
        faults: what a line that is wrong does, or an image that cannot be opened

    Raises: MissingError, PromptError, UsageError: a file is not there or a line is wrong; names file and line.
    """
    place = Path(path)
    if kind == "images" and place.is_dir():
        rows = _folder_rows(place, faults)
    else:
        read = {"prompts": _prompt_row, "captions": _caption_row, "images": _image_row}[kind]
        rows = [_read_row(line, partial(read, folder=place.parent), faults) for line in walk_lines(place)]
    good = [row for row in rows if not row.fault]
    if not good:
        raise MissingError(f"data.sources: {path} has no line that can be read; the first fault: {rows[0].fault}")
    return FileSource(rows, frozenset(_gives(kind, good, use)), use, seed, faults)


def _gives(kind: str, rows: Sequence[Row], use: Use) -> set[str]:
    """Return the fields that the samples of all rows have."""
    if kind == "prompts":
        gives = {"fragments"}
        gives |= {"target"} if all(row.target for row in rows) else set()
        return gives if any(row.images for row in rows) else gives | {"caption"}
    if kind == "captions":
        return {"fragments", "caption"}
    told = {"read": {"fragments", "images"}, "match": {"images"}, "generate": {"fragments"}}[use] | {"caption"}
    return {"target"} | (told if rows[0].caption else set())


def _read_row(line: Line | BadLine, read: Callable[[Line], Row], faults: OnFault) -> Row:
    """Return a line as a row; where faults are skipped, a bad one keeps its number. Raises: its fault otherwise."""
    try:
        if isinstance(line, BadLine):
            raise line.fault
        return read(line)
    except (MissingError, PromptError) as error:
        if faults == "stop":
            raise
        return Row(line.origin, fault=str(error))


def _prompt_row(line: Line, folder: Path) -> Row:
    """Return a line of the prompt grammar with the image to be generated."""
    try:
        prompt = Prompt.parse(line.text("prompt"))
    except PromptError as error:
        raise PromptError(f"{line.origin}: {error}", column=error.column, prompt=error.prompt) from None
    for ref in prompt.images:
        if ref.slot is not None or ref.weight != 1.0:
            what = f"<image:-{ref.slot}>: write the file's path" if ref.slot else f"weight={ref.weight:g}: leave it out"
            message = f"{line.origin}: training data cannot use {what}"
            raise PromptError(message, column=ref.column, prompt=prompt.text)
    images = tuple(_find(line, folder, ref.path) for ref in prompt.images)
    target = _find(line, folder, line.text("target")) if "target" in line.values else None
    return Row(line.origin, prompt=prompt, images=images, target=target)


def _caption_row(line: Line, folder: Path) -> Row:
    """Return a line that is a caption."""
    return Row(line.origin, line.text("caption", "text"))


def _image_row(line: Line, folder: Path) -> Row:
    """Return a line that names an image and its caption."""
    caption = line.text("caption", "text")
    return Row(line.origin, caption, target=_find(line, folder, line.text("image", "file_name", "path")))


def _folder_rows(folder: Path, faults: OnFault) -> list[Row]:
    """Return the images of a folder tree, each with its caption in a .txt file of its name, or all without."""
    images = list(data_files(folder, suffixes=SUFFIXES, recursive=True))
    if not images:
        raise MissingError(f"data.sources: {folder} holds no images ({', '.join(SUFFIXES)})")
    lacking = [path for path in images if not path.with_suffix(".txt").is_file()]
    if len(lacking) == len(images):
        return [Row(str(path), target=path) for path in images]
    return [_captioned(path, faults) for path in images]


def _captioned(image: Path, faults: OnFault) -> Row:
    """Return an image with its caption; where faults are skipped, one without keeps its number."""
    path = image.with_suffix(".txt")
    try:
        if not path.is_file():
            raise MissingError(f"{image} has no caption, as others have: write it into {path.name}")
        return Row(str(image), " ".join(line.text("caption") for line in read_lines(path)), target=image)
    except MissingError as error:
        if faults == "stop":
            raise
        return Row(str(image), target=image, fault=str(error))


def _find(line: Line, folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise MissingError(f"{line.origin}: there is no image {path}")
    return path


def _open_target(row: Row, size: int) -> Target:
    assert row.target is not None
    return Target(_open(row, row.target))


def _open(row: Row, path: Path) -> Image.Image:
    try:
        return open_image(path)
    except ImageError as error:
        raise ImageError(str(error) if row.origin == str(path) else f"{row.origin}: {error}") from None

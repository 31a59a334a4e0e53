"""Open Images V7: the CSV list of images, and a folder of {ImageID}.jpg; captions of Localized Narratives where given.

Images without a caption get an empty one, for the captioner of `kg data build`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.data.folders import read_below
from kgcli.data.images import decode_image
from kgcli.data.importers.base import Filled, ImportOptions, Item, broken, existing, pair_of
from kgcli.data.shards.write import encode_image
from kgcli.data.sources.tables import BadLine, walk_lines
from kgcli.data.textfiles import walk_table
from kgcli.errors import KgError, MissingError, UsageError

_IMAGE_ID = re.compile(r"[0-9a-f]{16}")
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class OpenImages:
    """The images of a CSV list, turned upright, with captions where a file of them is given."""

    name = "open-images"
    layout = "CSV of Open Images V7 (ImageID, Rotation), with --images its folder; captions: -c captions=FILE.jsonl"
    uses = frozenset({"images", "columns"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the images of the list."""
        path = existing(source, what="CSV file")
        images = options.images_of(self.name, "in which the images are {ImageID}.jpg")
        if odd := sorted(set(options.columns) - {"captions"}):
            raise UsageError(f"open-images takes -c captions=FILE alone, not {odd[0]}")
        captions: dict[str, str] = {}
        if "captions" in options.columns:
            yield from _note_captions(Path(options.columns["captions"]), captions)
        for place, row in _rows(path):
            if isinstance(row, KgError):
                yield broken(place, MissingError(f"{place}: {row}"))
                continue
            name = row.get("ImageID", "")
            yield Item(name, partial(_read, images, name, row.get("Rotation", "0"), captions.get(name, "")))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of the list with their places, a bad one as an error. Raises: MissingError."""
    if not path.is_file():
        raise MissingError(f"{path} is no CSV file")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if "ImageID" not in file.readline().strip().split(","):
            raise MissingError(f"{path} has no column ImageID")
        file.seek(0)
        for place, row in walk_table(file, ",", str(path), strict=False):
            yield f"{path.name} {place}", row


def _note_captions(path: Path, captions: dict[str, str]) -> Iterator[Item]:
    """Note the first narrative of each image; yield the lines that cannot be read."""
    for line in walk_lines(path):
        if isinstance(line, BadLine):
            yield broken(line.origin, line.fault)
            continue
        try:
            captions.setdefault(line.text("image_id"), line.text("caption"))
        except MissingError as error:
            yield broken(line.origin, error)


def _read(folder: Path, name: str, turn: str, caption: str) -> Iterable[Filled]:
    if not _IMAGE_ID.fullmatch(name):
        raise MissingError(f"{name[:40]!r} is no ImageID of 16 hexadecimal digits")
    data = read_below(folder, f"{name}.jpg", name)
    degrees = int(float(turn)) if re.fullmatch(r"\d{1,3}(\.0*)?", turn) else 0
    if degrees in _TURNS:  # counter-clockwise, as the list says
        turned = decode_image(data, name).transpose(_TURNS[degrees])
        data = encode_image(turned, "jpg", quality=95)
    return [pair_of(data, caption, name)]

"""Open Images V7: the CSV list of images, and a folder of {ImageID}.jpg; captions of Localized Narratives where given.

Images without a caption get an empty one, for the captioner of `kg data build`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from kgcli.data.folders import read_below
from kgcli.data.images import decode_image
from kgcli.data.importers.base import Filled, ImportOptions, Item, existing, pair_of
from kgcli.data.shards.write import encode_image
from kgcli.data.sources.tables import read_lines
from kgcli.errors import MissingError, UsageError

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
        if options.images is None:
            raise UsageError("open-images needs --images FOLDER")
        if odd := sorted(set(options.columns) - {"captions"}):
            raise UsageError(f"open-images takes -c captions=FILE alone, not {odd[0]}")
        captions = _captions(Path(options.columns["captions"])) if "captions" in options.columns else {}
        for row in _rows(path):
            name, turn = str(row["ImageID"]), row.get("Rotation") or "0"
            yield Item(name, partial(_read, options.images, name, turn, captions.get(name, "")))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if "ImageID" not in (rows.fieldnames or ()):
                raise MissingError(f"{path} has no column ImageID")
            yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise MissingError(f"{path} is no CSV file: {error}") from None


def _captions(path: Path) -> dict[str, str]:
    """Return the first narrative of each image."""
    found: dict[str, str] = {}
    for line in read_lines(path):
        found.setdefault(line.text("image_id"), line.text("caption"))
    return found


def _read(folder: Path, name: str, turn: str, caption: str) -> Iterable[Filled]:
    if not _IMAGE_ID.fullmatch(name):
        raise MissingError(f"{name[:40]!r} is no ImageID of 16 hexadecimal digits")
    data = read_below(folder, f"{name}.jpg", name)
    degrees = int(float(turn)) if re.fullmatch(r"\d{1,3}(\.0*)?", turn) else 0
    if degrees in _TURNS:  # counter-clockwise, as the list says
        turned = decode_image(data, name).transpose(_TURNS[degrees])
        data = encode_image(turned, "jpg", quality=95)
    return [pair_of(data, caption, name)]

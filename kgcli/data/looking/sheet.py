"""A contact sheet: rows of shards as one HTML page with captions, crops and masks, which asks nothing of the network.

All text of the data is escaped, and images are decoded and written anew, small.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kgcli.data.images import decode_image
from kgcli.data.looking.rows import SeenRow, read_rows, shards_of
from kgcli.data.shards.records import Compositional, Edit, Interleaved, Pair, Record, Text, Written
from kgcli.errors import ImageError

PAGE = "sheet.html"
SIDE = 224  # pixels of the longest side of an image
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Picture:
    """An image of the page; `source` is empty for one that cannot be decoded."""

    source: str
    title: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Card:
    """A row of the page: its text with entities marked, and its images."""

    key: str
    kind: str
    text: Markup
    pictures: list[Picture]
    note: str = ""


def write_sheet(path: Path, *, num: int, seed: int | None = None) -> str:
    """Return the page of the first rows of a folder of shards or, with a seed, of rows at random.

    Raises: MissingError where there are no shards.
    """
    shards = shards_of(path)
    rows, total = _first(shards, num) if seed is None else _sampled(shards, num, seed)
    shown = f"{len(rows):,} rows" if total is None else f"{len(rows):,} of {total:,} rows"
    return _environment().get_template(PAGE).render(name=path.name, shown=shown, cards=[_card(row) for row in rows])


def _first(shards: list[Path], num: int) -> tuple[list[SeenRow], None]:
    def rows() -> Iterator[SeenRow]:
        for shard in shards:
            yield from read_rows(shard)

    return list(islice(rows(), num)), None


def _sampled(shards: list[Path], num: int, seed: int) -> tuple[list[SeenRow], int]:
    """Return a random sample by reservoir, in the order of the shards, and the number of rows."""
    rng = np.random.default_rng([31, seed])
    kept: dict[int, tuple[int, SeenRow]] = {}
    total = 0
    for shard in shards:
        for row in read_rows(shard):
            slot = total if total < num else int(rng.integers(total + 1))
            if slot < num:
                kept[slot] = (total, row)
            total += 1
    return [row for _, row in sorted(kept.values(), key=lambda one: one[0])], total


def _card(row: SeenRow) -> Card:
    if row.record is None:
        kind = "no sample" if row.left_out else "fault"
        return Card(row.origin, kind, Markup("{}").format(row.left_out or row.fault), [])
    pictures = [_picture(row.images[name], title) for name, title in _titles(row.record) if name in row.images]
    return Card(row.origin, row.record.kind, _text(row.record), pictures, row.record.origin)


def _titles(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the images of a record with what each shows."""
    match record:
        case Compositional():
            yield record.image, "image"
            for entity in record.entities:
                for name, what in ((entity.crop, ""), (entity.crop_on_white, ", on white"), (entity.mask, ", mask")):
                    if name:
                        yield name, entity.noun + what
        case Edit():
            yield record.before, "before"
            yield record.after, "after"
        case Written():
            for number, ref in enumerate(record.parsed().images, start=1):
                yield ref.path, f"image {number}"
            if record.target:
                yield record.target, "target"
        case Interleaved():
            for number, name in enumerate(record.images, start=1):
                yield name, f"image {number}"
        case _:
            for name in record.images[:1]:
                yield name, "image"
    if isinstance(record, Pair | Edit | Written):
        for name in record.masks:
            yield name, "mask"


def _text(record: Record) -> Markup:
    """Return the words of a record, escaped, with entities and images marked."""
    match record:
        case Compositional():
            parts, end = [], 0
            for entity in record.entities:
                start, stop = entity.span
                parts.append(Markup("{}<mark>{}</mark>").format(record.caption[end:start], record.caption[start:stop]))
                end = stop
            return Markup("").join([*parts, Markup("{}").format(record.caption[end:])])
        case Interleaved() | Written():
            fragments = record.fragments if isinstance(record, Interleaved) else record.parsed().parts
            parts, number = [], 0
            for one in fragments:
                number += not isinstance(one, str)
                mark = Markup("<mark>image {}</mark>").format(number)
                parts.append(Markup("{}").format(one) if isinstance(one, str) else mark)
            return Markup("").join(parts)
        case Text() | Pair() | Edit():
            return Markup("{}").format(record.words)


def _picture(data: bytes, title: str) -> Picture:
    try:
        image = decode_image(data, title)
    except ImageError:
        return Picture("", f"{title}: cannot be decoded")
    size = image.size
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(source, f"{title}, {size[0]} x {size[1]}", *image.size)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

"""The published loaders' TSV files: images as base64 in tab-separated lines.

laion             id, caption, image, width, height
instructpix2pix   input caption, edit instruction, then the image before and after for each seed
openimage         caption, tags with commas, image, then for each tag its crop with background and on white

Source: KOSMOS-G (arXiv:2310.02992), the released loaders.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from kgcli.data.importers.base import MAX_LINE, Filled, ImportOptions, Item, Skipped, broken, existing, files_of
from kgcli.data.shards.records import Compositional, Edit, Entity, Pair
from kgcli.data.shards.write import as_member
from kgcli.errors import MissingError

MIN_SIDE = 384  # pixels of a LAION image
NOT_ENTITIES = frozenset(
    "yellow blue red green white black brown grey gray purple pink orange cyan silver gold golden".split()
)
_AFTER_NOUN = " ,.!?;:)]}"  # what ends the word that an entity's noun begins


class _Tsv:
    """Lines of one .tsv file or of those of a folder."""

    uses = frozenset({"as_published"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the lines."""
        for path in files_of(existing(source, what="TSV file or folder"), (".tsv",), what="TSV files"):
            for origin, line in _lines(path):
                if isinstance(line, MissingError):
                    yield broken(origin, line)
                else:
                    yield Item(origin, partial(self.read, line.split("\t"), origin, options))

    def read(self, cells: list[str], origin: str, options: ImportOptions) -> Iterable[Filled]:
        """Return the records of a line."""
        raise NotImplementedError


class PublishedLaion(_Tsv):
    """Captioned images."""

    name = "published-laion"
    layout = "the published loader's TSV: id, caption, base64 image, width, height"

    def read(self, cells: list[str], origin: str, options: ImportOptions) -> Iterable[Filled]:
        """Return one pair, None for an image of under 384 pixels or of no stated size."""
        _need(cells, 5, origin)
        sides = cells[3:5]
        if not all(side.isascii() and side.isdigit() for side in sides):
            raise Skipped("width and height are no numbers")
        if min(map(int, sides)) < MIN_SIDE:
            raise Skipped(f"width or height is under {MIN_SIDE}")
        suffix, data = _image(cells[2], origin)
        return [(Pair(image=suffix, caption=cells[1], origin=origin), {suffix: data})]


class PublishedInstructPix2Pix(_Tsv):
    """Edits: a record for each seed, of which the published loader takes one at random."""

    name = "published-instructpix2pix"
    layout = "the published loader's TSV: caption, edit, base64 images before and after per seed"

    def read(self, cells: list[str], origin: str, options: ImportOptions) -> Iterable[Filled]:
        """Return the edits of a line."""
        _need(cells, 4, origin)
        for number in range((len(cells) - 2) // 2):
            place = f"{origin}, seed {number + 1}"
            before, after = (_image(cells[2 + 2 * number + side], place) for side in (0, 1))
            edit = Edit(
                before=f"0.{before[0]}", after=after[0], instruction=cells[1], caption=cells[0] or None, origin=place
            )
            yield edit, {edit.before: before[1], edit.after: after[1]}


class PublishedOpenImage(_Tsv):
    """Compositional samples; a line none of whose tags can be placed is a captioned image."""

    name = "published-openimage"
    layout = "the published loader's TSV: caption, tags, base64 image, two base64 crops per tag"

    def read(self, cells: list[str], origin: str, options: ImportOptions) -> Iterable[Filled]:
        """Return one record; where the published loader would fail on it, none with `as_published`."""
        _need(cells, 3, origin)
        caption, tags = cells[0], cells[1].split(",")
        placed = place_tags(caption, tags)
        if options.as_published and any(_breaks_published(tag) for tag in tags):
            raise Skipped("the published loader fails on a tag that is no pattern")
        main, data = _image(cells[2], origin)
        images, entities = {main: data}, []
        for number, (tag, span) in enumerate(placed):
            column = 3 + 2 * tags.index(tag)
            _need(cells, column + 2, origin)
            crop, white = (_image(cells[column + side], f"{origin}, {tag}") for side in (0, 1))
            names = (f"{2 * number}.{crop[0]}", f"{2 * number + 1}.{white[0]}")
            entities.append(Entity(noun=tag, span=span, crop=names[0], crop_on_white=names[1]))
            images |= {names[0]: crop[1], names[1]: white[1]}
        if not entities:
            return [(Pair(image=main, caption=caption, origin=origin), images)]
        return [(Compositional(image=main, caption=caption, entities=tuple(entities), origin=origin), images)]


def passing_tags(caption: str, tags: list[str]) -> list[str]:
    """Return the tags that name an entity of a caption, as the published loader filters them.

    A tag passes that is no colour, is a word of the caption and is part of no other tag; one that is given twice is
    part of the other.
    """
    return [
        tag for tag in tags if tag not in NOT_ENTITIES and _word(tag, caption) is not None and _stands_alone(tag, tags)
    ]


def place_tags(caption: str, tags: list[str]) -> list[tuple[str, tuple[int, int]]]:
    """Return the entities of a caption with the characters that each takes, from left to right.

    In the order of the ends of their first words, each is looked for after the one before; the end of a word that a
    noun begins belongs to it.
    """
    placed, start = [], 0
    for tag in sorted(passing_tags(caption, tags), key=lambda tag: (_word(tag, caption) or (0, 0))[1]):
        span = _word(tag, caption[start:])
        if not tag or span is None:
            continue
        head, tail = start + span[0], start + span[1]
        while tail < len(caption) and caption[tail] not in _AFTER_NOUN:
            tail += 1
        placed.append((tag, (head, tail)))
        start = tail
    return placed


def _word(tag: str, text: str) -> tuple[int, int] | None:
    found = re.search(rf"\b{re.escape(tag)}\b", text, re.IGNORECASE)
    return found.span() if found else None


def _stands_alone(tag: str, tags: list[str]) -> bool:
    """Return True unless the tag, as the pattern it was published as, is found in several of the tags."""
    pattern = rf"\b{re.escape(tag) if _breaks_published(tag) or not _is_plain(tag) else tag}\b"
    return sum(re.search(pattern, other) is not None for other in tags) <= 1


def _is_plain(tag: str) -> bool:
    return not set(tag) & set("*+?{}()|[]\\^$")  # a stranger's pattern could take for ever


def _breaks_published(tag: str) -> bool:
    try:
        re.compile(rf"\b{tag}\b")
    except (re.error, OverflowError):
        return True
    return False


def _lines(path: Path) -> Iterator[tuple[str, str | MissingError]]:
    """Yield the lines that are not blank; one too long or not UTF-8 as an error."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            origin = f"{path.name} line {number}"
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (more := file.readline(MAX_LINE)) and not more.endswith(b"\n"):
                    pass
                yield origin, MissingError(f"{origin} is longer than {MAX_LINE:,} bytes")
                continue
            try:
                text = line.decode("utf-8").strip("\r\n")
            except UnicodeDecodeError:
                yield origin, MissingError(f"{origin} is not UTF-8 text")
                continue
            if text.strip():
                yield origin, text


def _need(cells: list[str], num: int, origin: str) -> None:
    if len(cells) < num:
        raise MissingError(f"{origin} has {len(cells)} columns; it needs {num}")


def _image(cell: str, origin: str) -> tuple[str, bytes]:
    try:
        data = base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError):
        raise MissingError(f"{origin}: an image is not base64") from None
    return as_member(data, origin)

"""Rows of shards as samples: byte ranges of a tar, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kgcli.data.images import pad_to_square, square
from kgcli.data.sample import Decoded, Fragments, Sample, Target
from kgcli.data.shards import storage
from kgcli.data.shards.contents import Contents, NoSample, is_text, open_images, read_contents
from kgcli.data.shards.fragments import compositional_fragments, edit_fragments
from kgcli.data.shards.index import IndexRow
from kgcli.data.shards.records import (
    Compositional,
    Edit,
    Entity,
    Interleaved,
    Pair,
    Record,
    Shown,
    Text,
    Written,
)
from kgcli.data.shards.tars import Place, size_fault
from kgcli.data.sources.base import Use
from kgcli.errors import MissingError

MAX_GAP = 2**20  # bytes between two members of a row that are read rather than skipped
# Fraction of edits whose prompt begins with the caption of the image before. Source: KOSMOS-G's published loader.
KEEP_INPUT_CAPTION = 0.5


@dataclass(frozen=True)
class Words:
    """How the words of a sample are chosen: the use of captioned images, and fractions of compositional samples.

    With `as_published`, those that the published loader loses by mistake are lost.
    """

    use: Use
    drop_entity_text: float = 0.5
    keep_background: float = 0.5
    as_published: bool = False


def read_members(row: IndexRow) -> dict[str, bytes]:
    """Return the files of a row by suffix, read at once.

    Raises: MissingError where the shard is not there or ends before, or a file is too large.
    """
    if any(member.offset < 0 or member.size < 0 for member in row.members):
        raise MissingError("the index names places that no row can have; make it again")
    if fault := size_fault({member.name: Place(member.offset, member.size) for member in row.members}):
        raise MissingError(fault)
    first = min(member.offset for member in row.members)
    end = max(member.offset + member.size for member in row.members)
    total = sum(member.size for member in row.members)
    if end - first > total + MAX_GAP * len(row.members):
        return {one.name: _whole(row.place, one.offset, one.size) for one in row.members}
    data = memoryview(_whole(row.place, first, end - first))
    return {one.name: bytes(data[one.offset - first :][: one.size]) for one in row.members}


def read_sample(row: IndexRow, words: Words, rng: np.random.Generator) -> Sample:
    """Return a row as a sample, all its images decoded: a row is good or bad as a whole.

    Args:
        rng: of the choice between words and images that a record offers

    Raises: MissingError: the row cannot be read.
    """
    content = read_members(row)
    found = _contents(row, content)
    images = open_images(found.record, found.images(content))
    return _Opened(images, row.name).sample(found.record, words, rng)


def read_fragments(row: IndexRow, words: Words, rng: np.random.Generator) -> Fragments:
    """Return the fragments of `read_sample`; only the texts of the row are read.

    Raises: MissingError: the texts cannot be read.
    """
    return fragments_of(_read_record(row), words, rng)


def is_lost(row: IndexRow, words: Words, rng: np.random.Generator) -> bool:
    """Tell if the published loader would lose a sample: its nouns are dropped, and its caption begins with one.

    Args:
        rng: that would decide the sample's words

    Raises: MissingError: the texts cannot be read.
    """
    if not words.as_published or row.kind != "compositional":
        return False
    record, drop = _read_record(row), bool(rng.random() < words.drop_entity_text)
    if not isinstance(record, Compositional):  # the index is of another tar
        return False
    return compositional_fragments(record, drop_entity_text=drop, as_published=True) is None


def _read_record(row: IndexRow) -> Record:
    """Return the record of a row, of which the texts alone are read. Raises: MissingError."""
    texts = tuple(one for one in row.members if is_text(one.name))
    content = read_members(replace(row, members=texts)) if texts else {}
    return _contents(row, content).record


def _contents(row: IndexRow, content: Mapping[str, bytes]) -> Contents:
    """Return what the texts of a row say. Raises: MissingError."""
    try:
        return read_contents({member.name: member.size for member in row.members}, content.__getitem__)
    except NoSample as error:
        raise MissingError(str(error)) from None


def fragments_of(record: Record, words: Words, rng: np.random.Generator) -> Fragments:
    """Return what the multimodal model reads of a record."""
    match record:
        case Text():
            return (record.text,) if record.text else ()
        case Pair():
            return _of_pair(record.caption, words)
        case Interleaved():
            return tuple(None if isinstance(part, Shown) else part for part in record.fragments)
        case Compositional():
            fragments = compositional_fragments(record, drop_entity_text=bool(rng.random() < words.drop_entity_text))
            assert fragments is not None, "only the published loader skips a record"
            return fragments
        case Edit():
            return edit_fragments(record, keep_caption=bool(rng.random() < KEEP_INPUT_CAPTION))
        case Written():
            return tuple(record.parsed().fragments)


def _of_pair(caption: str, words: Words) -> Fragments:
    """Return the fragments of an image with its caption, by the image's use."""
    if words.use == "generate":
        return (caption,) if caption else ()
    return (None, f" {caption}") if words.use == "read" else ()


def _whole(place: str, start: int, size: int) -> bytes:
    data = storage.read_range(place, start, size) if size else b""
    if len(data) != size:
        raise MissingError(f"the shard is cut short: {len(data):,} of {size:,} bytes at {start:,}")
    return data


@dataclass(frozen=True)
class _Opened:
    """The images of a record by name, decoded, and the row's name for messages."""

    images: Mapping[str, Image.Image]
    name: str

    def sample(self, record: Record, words: Words, rng: np.random.Generator) -> Sample:
        """Return a record as a sample."""
        fragments = fragments_of(record, words, rng)
        shown: tuple[Image.Image, ...]
        match record:
            case Text():
                caption = record.text if record.caption is None else record.caption
                return Sample(fragments, (), caption, None, self.name)
            case Pair():
                shown = () if words.use == "generate" else (self.images[record.image],)
                return Sample(fragments, shown, record.caption, self.target(record.image, record.masks), self.name)
            case Interleaved():
                shown = tuple(self.images[part.image] for part in record.fragments if isinstance(part, Shown))
                return Sample(fragments, shown, origin=self.name)
            case Compositional():
                shown = tuple(
                    self.images[one.crop] if rng.random() < words.keep_background else self.on_white(record, one)
                    for one in record.entities
                )
                masks = tuple(one.mask for one in record.entities if one.mask is not None)
                return Sample(fragments, shown, "", self.target(record.image, masks), self.name)
            case Edit():
                target = self.target(record.after, record.masks)
                return Sample(fragments, (self.images[record.before],), "", target, self.name)
            case Written():
                shown = tuple(square(self.images[ref.path], ref.fit) for ref in record.parsed().images)
                caption = record.caption or ("" if shown else record.words)
                made = self.target(record.target, record.masks) if record.target else None
                return Sample(fragments, shown, caption, made, self.name)

    def on_white(self, record: Compositional, entity: Entity) -> Image.Image:
        """Return the image of an entity without its background."""
        if entity.crop_on_white is not None:
            return self.images[entity.crop_on_white]
        whole, mask = self.images[record.image], self.mask(entity.mask or "")  # which `open_images` has checked
        cut = Image.new("RGB", whole.size, "white")
        cut.paste(whole, mask=mask)
        return pad_to_square(cut.crop(mask.getbbox()))

    def mask(self, member: str) -> Image.Image:
        """Return a mask in [0, 255]."""
        return self.images[member].convert("L")

    def target(self, member: str, masks: tuple[str, ...]) -> Decoded:
        """Return the image to be generated."""
        return Decoded(Target(self.images[member], tuple(map(self.mask, masks))))

"""Rows of shards as samples: byte ranges of a tar, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from kgcli.data.images import MAX_BYTES, decode_image, pad_to_square, square
from kgcli.data.sample import Decoded, Fragments, Sample, Target
from kgcli.data.shards import storage
from kgcli.data.shards.index import IndexRow
from kgcli.data.shards.records import (
    KINDS,
    Compositional,
    Edit,
    Entity,
    Interleaved,
    Pair,
    Record,
    Shown,
    Text,
    Written,
    record_of,
)
from kgcli.data.shards.scan import caption_of, main_image
from kgcli.data.sources.base import Use
from kgcli.errors import MissingError
from kgcli.reading import parse_json

MAX_ROW_BYTES = 2**30
MAX_GAP = 2**20  # bytes between two members of a row that are read rather than skipped
# Fraction of edits whose prompt begins with the caption of the image before. Source: KOSMOS-G's published loader.
KEEP_INPUT_CAPTION = 0.5


@dataclass(frozen=True)
class Words:
    """How the words of a sample are chosen: the use of captioned images, and fractions of compositional samples."""

    use: Use
    drop_entity_text: float = 0.5
    keep_background: float = 0.5


def read_members(row: IndexRow) -> dict[str, bytes]:
    """Return the files of a row by suffix, read at once.

    Raises: MissingError where the shard is not there or ends before.
    """
    first = min(member.offset for member in row.members)
    end = max(member.offset + member.size for member in row.members)
    total = sum(member.size for member in row.members)
    if first < 0 or any(not 0 <= member.size <= MAX_BYTES for member in row.members) or end - first > MAX_ROW_BYTES:
        raise MissingError("the index names places that no row can have; make it again")
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
    files = _Files(read_members(row), row.name)
    found = _parse(files.content)
    if not isinstance(found, _Foreign):
        return files.sample(found, words, rng)
    if found.image is None:
        return Sample(found.fragments(words), (), found.caption, None, row.name)
    image = files.image(found.image)
    shown = () if words.use == "generate" else (image,)
    return Sample(found.fragments(words), shown, found.caption, Decoded(Target(image)), row.name)


def read_fragments(row: IndexRow, words: Words, rng: np.random.Generator) -> Fragments:
    """Return the fragments of `read_sample`; only the texts of the row are read.

    Raises: MissingError: the texts cannot be read.
    """
    texts = tuple(one for one in row.members if one.name in ("json", "txt"))
    files = read_members(replace(row, members=texts)) if texts else {}
    found = _parse({one.name: b"" for one in row.members} | files)
    return found.fragments(words) if isinstance(found, _Foreign) else fragments_of(found, words, rng)


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
            return _of_entities(record, drop=bool(rng.random() < words.drop_entity_text))
        case Edit():
            told = (f"{record.caption} ",) if rng.random() < KEEP_INPUT_CAPTION and record.caption else ()
            return (*told, None, f" {record.instruction}")
        case Written():
            return tuple(record.parsed().fragments)


def _of_pair(caption: str, words: Words) -> Fragments:
    """Return the fragments of an image with its caption, by the image's use."""
    if words.use == "generate":
        return (caption,) if caption else ()
    return (None, f" {caption}") if words.use == "read" else ()


def _of_entities(record: Compositional, *, drop: bool) -> Fragments:
    """Return a caption with an image after each entity's noun, or in the place of all nouns."""
    fragments: list[str | None] = []
    at = 0
    for entity in record.entities:
        start, end = entity.span
        fragments += [record.caption[at : start if drop else end], None]
        at = end
    return tuple(part for part in (*fragments, record.caption[at:]) if part != "")


@dataclass(frozen=True)
class _Foreign:
    """A row of a foreign shard: an image, its caption in .txt or .json, or both."""

    image: str | None  # its member
    caption: str

    def fragments(self, words: Words) -> Fragments:
        """Return what the multimodal model reads of the row."""
        if self.image is None:
            return (self.caption,) if self.caption else ()
        return _of_pair(self.caption, words)


def _parse(files: Mapping[str, bytes]) -> Record | _Foreign:
    """Return what the texts of a row say. Raises: MissingError."""
    value = parse_json(files["json"], name="its JSON", error=MissingError) if "json" in files else None
    if isinstance(value, dict) and value.get("kind") in KINDS:
        return record_of(value, "its JSON")
    caption = caption_of(value)
    if "txt" in files:
        try:
            caption = " ".join(files["txt"].decode("utf-8").split()) or caption
        except UnicodeDecodeError as error:
            raise MissingError(f"its .txt is not UTF-8 text (byte {error.start})") from None
    return _Foreign(main_image(list(files)), caption)


def _whole(place: str, start: int, size: int) -> bytes:
    data = storage.read_range(place, start, size) if size else b""
    if len(data) != size:
        raise MissingError(f"the shard is cut short: {len(data):,} of {size:,} bytes at {start:,}")
    return data


@dataclass
class _Files:
    """The files of a row, whose images are decoded once each."""

    content: Mapping[str, bytes]
    name: str
    images: dict[str, Image.Image] = field(default_factory=dict)

    def image(self, member: str) -> Image.Image:
        """Return an image. Raises: MissingError: the row has no such member, or it is no image."""
        if member not in self.images:
            if member not in self.content:
                raise MissingError(f"its JSON names {member}, which the shard does not hold")
            self.images[member] = decode_image(self.content[member], f"its {member}")
        return self.images[member]

    def sample(self, record: Record, words: Words, rng: np.random.Generator) -> Sample:
        """Return a record as a sample."""
        for member in record.images:
            self.image(member)
        fragments = fragments_of(record, words, rng)
        shown: tuple[Image.Image, ...]
        match record:
            case Text():
                caption = record.text if record.caption is None else record.caption
                return Sample(fragments, (), caption, None, self.name)
            case Pair():
                shown = () if words.use == "generate" else (self.image(record.image),)
                return Sample(fragments, shown, record.caption, self.target(record.image, record.masks), self.name)
            case Interleaved():
                shown = tuple(self.image(part.image) for part in record.fragments if isinstance(part, Shown))
                return Sample(fragments, shown, origin=self.name)
            case Compositional():
                shown = tuple(
                    self.image(one.crop) if rng.random() < words.keep_background else self.on_white(record, one)
                    for one in record.entities
                )
                masks = tuple(one.mask for one in record.entities if one.mask is not None)
                return Sample(fragments, shown, "", self.target(record.image, masks), self.name)
            case Edit():
                target = self.target(record.after, record.masks)
                return Sample(fragments, (self.image(record.before),), "", target, self.name)
            case Written():
                shown = tuple(square(self.image(ref.path), ref.fit) for ref in record.parsed().images)
                caption = record.caption or ("" if shown else record.words)
                made = self.target(record.target, record.masks) if record.target else None
                return Sample(fragments, shown, caption, made, self.name)

    def on_white(self, record: Compositional, entity: Entity) -> Image.Image:
        """Return the image of an entity without its background."""
        if entity.crop_on_white is not None:
            return self.image(entity.crop_on_white)
        whole, mask = self.image(record.image), self.mask(entity.mask or "")
        if mask.size != whole.size or (box := mask.getbbox()) is None:
            raise MissingError(f"the mask of {entity.noun!r} is empty or not as large as the image")
        cut = Image.new("RGB", whole.size, "white")
        cut.paste(whole, mask=mask)
        return pad_to_square(cut.crop(box))

    def mask(self, member: str) -> Image.Image:
        """Return a mask in [0, 255]."""
        return self.image(member).convert("L")

    def target(self, member: str, masks: tuple[str, ...]) -> Decoded:
        """Return the image to be generated."""
        return Decoded(Target(self.image(member), tuple(map(self.mask, masks))))

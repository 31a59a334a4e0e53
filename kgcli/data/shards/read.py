"""Rows of shards as samples: byte ranges of a tar, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from kgcli.data.images import MAX_BYTES, decode_image, pad_to_square, square
from kgcli.data.sample import Decoded, Sample, Target
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
from kgcli.errors import ImageError, MissingError
from kgcli.reading import parse_json

Fragments = tuple[str | None, ...]
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

    Raises: MissingError, ImageError: the row cannot be read.
    """
    files = read_members(row)
    if (value := _json(files, row)) is not None and isinstance(value, dict) and value.get("kind") in KINDS:
        record = record_of(value, "its JSON")
        return _Files(files, row.name).sample(record, words, rng)
    return _foreign(files, row.name, value, words)


def _whole(place: str, start: int, size: int) -> bytes:
    data = storage.read_range(place, start, size) if size else b""
    if len(data) != size:
        raise MissingError(f"the shard is cut short: {len(data):,} of {size:,} bytes at {start:,}")
    return data


def _json(files: Mapping[str, bytes], row: IndexRow) -> object:
    return parse_json(files["json"], name="its JSON", error=MissingError) if "json" in files else None


def _foreign(files: Mapping[str, bytes], name: str, value: object, words: Words) -> Sample:
    """Return a row of a foreign shard: an image, its caption in .txt or .json, or both."""
    caption = caption_of(value)
    if "txt" in files:
        try:
            caption = " ".join(files["txt"].decode("utf-8").split()) or caption
        except UnicodeDecodeError as error:
            raise MissingError(f"its .txt is not UTF-8 text (byte {error.start})") from None
    decoded = _Files(files, name)
    image = main_image(list(files))
    if image is None:
        return decoded.text(caption, caption)
    return decoded.pair(image, caption, (), words)


@dataclass
class _Files:
    """The files of a row, whose images are decoded once each."""

    files: Mapping[str, bytes]
    name: str
    images: dict[str, Image.Image] = field(default_factory=dict)

    def image(self, member: str) -> Image.Image:
        """Return an image. Raises: ImageError, MissingError where the row has no such member."""
        if member not in self.images:
            if member not in self.files:
                raise MissingError(f"its JSON names {member}, which the shard does not hold")
            try:
                self.images[member] = decode_image(self.files[member], f"its {member}")
            except ImageError as error:
                raise MissingError(str(error)) from None
        return self.images[member]

    def sample(self, record: Record, words: Words, rng: np.random.Generator) -> Sample:
        """Return a record as a sample."""
        for member in record.images:
            self.image(member)
        match record:
            case Text():
                return self.text(record.text, record.text if record.caption is None else record.caption)
            case Pair():
                return self.pair(record.image, record.caption, record.masks, words)
            case Interleaved():
                fragments = tuple(None if isinstance(part, Shown) else part for part in record.fragments)
                shown = tuple(self.image(part.image) for part in record.fragments if isinstance(part, Shown))
                return Sample(fragments, shown, origin=self.name)
            case Compositional():
                return self.compositional(record, words, rng)
            case Edit():
                told = rng.random() < KEEP_INPUT_CAPTION and record.caption
                fragments = (*((f"{record.caption} ",) if told else ()), None, f" {record.instruction}")
                target = self.target(record.after, record.masks)
                return Sample(fragments, (self.image(record.before),), "", target, self.name)
            case Written():
                return self.written(record)

    def text(self, text: str, caption: str) -> Sample:
        """Return words alone."""
        return Sample((text,) if text else (), (), caption, None, self.name)

    def pair(self, image: str, caption: str, masks: tuple[str, ...], words: Words) -> Sample:
        """Return a captioned image by its use."""
        target = self.target(image, masks)
        if words.use == "generate":
            return Sample((caption,) if caption else (), (), caption, target, self.name)
        fragments = (None, f" {caption}") if words.use == "read" else ()
        return Sample(fragments, (self.image(image),), caption, target, self.name)

    def written(self, record: Written) -> Sample:
        """Return a prompt, its images made square by the fit that it names."""
        prompt = record.parsed()
        shown = tuple(square(self.image(ref.path), ref.fit) for ref in prompt.images)
        caption = record.caption or ("" if shown else record.words)
        target = self.target(record.target, record.masks) if record.target else None
        return Sample(tuple(prompt.fragments), shown, caption, target, self.name)

    def compositional(self, record: Compositional, words: Words, rng: np.random.Generator) -> Sample:
        """Return a caption with the image of each entity after its noun, or in the place of all nouns."""
        drop = rng.random() < words.drop_entity_text  # once per caption, for all its entities
        fragments: list[str | None] = []
        shown, at = [], 0
        for entity in record.entities:
            start, end = entity.span
            if said := record.caption[at : start if drop else end]:
                fragments.append(said)
            fragments.append(None)
            with_background = rng.random() < words.keep_background
            shown.append(self.image(entity.crop) if with_background else self.on_white(record, entity))
            at = end
        if record.caption[at:]:
            fragments.append(record.caption[at:])
        return Sample(tuple(fragments), tuple(shown), "", self.target(record.image, _masks(record)), self.name)

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


def _masks(record: Compositional) -> tuple[str, ...]:
    return tuple(entity.mask for entity in record.entities if entity.mask is not None)

"""One input shard to one output shard: the same function for every engine, and nothing else decides the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.construction.config import BuildConfig
from kgcli.construction.stage import Draft, NotTaken, Stage
from kgcli.data.images import decode_image
from kgcli.data.looking.rows import SeenRow, read_rows
from kgcli.data.shards.layout import is_key
from kgcli.data.shards.records import Compositional, Entity
from kgcli.data.shards.write import Row, encode_image, write_shard
from kgcli.errors import ImageError, KgError
from kgcli.files import sha256

KEPT = "kept"
FAULTS = "faults"
NOT_CAPTIONED = "no image with a caption"
NOT_TAKEN = "the model cannot take the sample"
SLICE = 16  # rows whose images are decoded at once
MAX_NAMED = 1000  # faults of a shard that are named; all are counted


@dataclass(frozen=True)
class ShardTask:
    """An input shard, where its output goes, and what the output's index notes of its making."""

    source: Path
    target: Path
    fingerprint: str
    repeated: dict[str, str] = field(default_factory=dict)  # key of a row that repeats an earlier one -> what repeats


@dataclass(frozen=True)
class Refused:
    """Why a row is no draft: a line of the yield table, and for a fault what is wrong."""

    reason: str
    fault: str = ""


@dataclass
class _Tally:
    """Counts of the rows of a shard so far, its faults and its cuts."""

    table: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)
    cuts: Counter[bool] = field(default_factory=Counter)  # of the rows kept: was the entity found?

    def refuse(self, row: SeenRow, refused: Refused) -> None:
        """Count a row that is no draft."""
        self.table[refused.reason] += 1
        if refused.fault:
            self.name(row.origin, refused.fault)

    def name(self, origin: str, fault: str) -> None:
        """Note a fault."""
        if len(self.faults) < MAX_NAMED:
            self.faults.append({"origin": origin, "reason": fault})


def build_shard(task: ShardTask, config: BuildConfig, stages: Sequence[tuple[str, Stage]]) -> dict[str, Any]:
    """Build the shard; return its notes: the yield by reason, whose sum is the input's rows, and the faults.

    Raises: KgError where a model fails or the output cannot be written.
    """
    tally = _Tally()
    rows: list[Row] = []
    drafts = _drafts(task, config, tally)
    while (made := _next_rows(drafts, config, stages, tally)) is not None:
        rows += made
    tally.table[KEPT] = len(rows)
    notes = {
        "fingerprint": task.fingerprint,
        "source": {"name": task.source.name, "sha256": sha256(task.source)},
        "yield": dict(sorted(tally.table.items())),
        "entities": {"kept": tally.cuts[True], "not_found": tally.cuts[False]},
        "faults": tally.faults,
    }
    entry = write_shard(task.target, rows, notes=notes)
    return {**notes, "sha256": entry.sha256}


def _drafts(task: ShardTask, config: BuildConfig, tally: _Tally) -> Iterator[Draft]:
    """Yield the rows that can be built on, and count the others."""
    keys = set()
    for number, row in enumerate(read_rows(task.source)):
        draft = _draft(number, row, task, config)
        if isinstance(draft, Draft) and draft.key in keys:
            draft = Refused(FAULTS, "its key is that of a row before it")
        if isinstance(draft, Refused):
            tally.refuse(row, draft)
            continue
        keys.add(draft.key)
        yield draft


def _next_rows(
    drafts: Iterator[Draft], config: BuildConfig, stages: Sequence[tuple[str, Stage]], tally: _Tally
) -> list[Row] | None:
    """Return what the stages keep of the next few drafts, None after the last: all decoded at once take gigabytes."""
    kept = list(islice(drafts, SLICE))
    if not kept:
        return None
    for name, stage in stages:
        _apply(name, stage, kept, tally)
        tally.table.update(f"{name}: {draft.dropped}" for draft in kept if draft.dropped)
        kept = [draft for draft in kept if not draft.dropped]
    tally.cuts.update(cut is not None for draft in kept for cut in draft.cuts)
    return [_row(draft, config) for draft in kept]


def _apply(name: str, stage: Stage, drafts: Sequence[Draft], tally: _Tally) -> None:
    """Apply a stage to some samples; one that its model cannot take is dropped and named.

    What a stage does to a sample depends on that sample alone, so it may see them again one by one.

    Raises: KgError where the stage fails otherwise.
    """
    try:
        stage.apply(drafts)
    except NotTaken as error:
        if len(drafts) == 1:
            drafts[0].drop(NOT_TAKEN)
            tally.name(drafts[0].origin, f"{NOT_TAKEN}: {error}")
            return
        for draft in drafts:
            _apply(name, stage, [draft], tally)
    except ValueError as error:
        place = f"{drafts[0].origin} to {drafts[-1].origin}"
        raise KgError(f"{name} failed at a sample of {place}: {' '.join(str(error).split())[:200]}") from error


def _draft(number: int, row: SeenRow, task: ShardTask, config: BuildConfig) -> Draft | Refused:
    """Return a row as a draft, or why it is none."""
    if row.record is None:
        return Refused(NOT_CAPTIONED) if row.left_out else Refused(FAULTS, row.fault)
    main = row.record.main_image
    if row.record.kind not in ("pair", "compositional") or main is None:
        return Refused(NOT_CAPTIONED)
    try:
        image = decode_image(row.images[main], f"its {main}")
    except ImageError as error:
        return Refused(FAULTS, str(error))
    caption = getattr(row.record, "caption", "")
    return Draft(
        row.key if is_key(row.key) else f"row-{number:06d}",  # other programs take any key
        row.record.origin or row.origin,
        square(image) if config.square else image,
        caption,
        image.size,
        repeated=task.repeated.get(row.key, ""),
    )


def square(image: Image.Image) -> Image.Image:
    """Return the middle square of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.width == image.height else image.crop((left, top, left + side, top + side))


def _row(draft: Draft, config: BuildConfig) -> Row:
    suffix = config.format
    encoded: dict[str, bytes] = {suffix: _encode(_resized(draft.image, config.size), config)}
    entities: list[Entity] = []
    for (noun, span), cut in zip(draft.entities, draft.cuts, strict=True):
        if cut is None:
            continue
        names = tuple(f"{2 * len(entities) + side}.{suffix}" for side in (0, 1))
        encoded |= {names[0]: _encode(cut.crop, config), names[1]: _encode(cut.on_white, config)}
        entities.append(Entity(noun=noun, span=span, crop=names[0], crop_on_white=names[1]))
    record = Compositional(image=suffix, caption=draft.caption, entities=tuple(entities), origin=draft.origin)
    return Row(draft.key, record, encoded)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Return an image with its shorter side at a size."""
    scale = size / min(image.size)
    return image if scale == 1 else image.resize((round(image.width * scale), round(image.height * scale)))


def _encode(image: Image.Image, config: BuildConfig) -> bytes:
    return encode_image(image, config.format, quality=config.quality)

"""A construction: input shards to output shards, resumed by shard, with a table of where the samples went."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kgcli.construction.config import BuildConfig
from kgcli.construction.duplicates import Hashes, caption_hashes, find_repeated, image_hash
from kgcli.construction.engines import check_engine, run_pool, run_ray
from kgcli.construction.filters import DuplicatesOptions
from kgcli.construction.models import find_model, hash_model
from kgcli.construction.shard import KEPT, ShardTask, square
from kgcli.construction.stage import Place
from kgcli.construction.table import check_stages, models_of, stage_facts
from kgcli.data.images import decode_image
from kgcli.data.looking.rows import read_rows, shards_of
from kgcli.data.shards.layout import ShardEntry, shard_name
from kgcli.data.shards.write import read_notes, write_dataset
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.files import locked, make_folder, remove_leftovers, sha256, write_whole
from kgcli.version import __version__

FAULTS = "faults.jsonl"
YIELD = "yield.json"
HASH_RULES = 2  # raised with each change of the hashes, or of which rows have them
HASHES = ".hashes"  # folder of the perceptual hashes of input shards, kept for later calls


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """A construction and where it goes."""

    source: Path  # folder of shards
    folder: Path
    name: str = "compositional"
    config: BuildConfig = BuildConfig()
    engine: str = "pool"
    num_workers: int = 1
    device: str = "cpu"
    offline: bool = False


@dataclass
class Built:
    """The yield of a construction: rows by what became of them, whose sum is the number of input rows."""

    rows: int = 0  # of the input
    shards: int = 0
    made: int = 0  # of the shards, by this call
    table: dict[str, int] = field(default_factory=dict)
    entities: dict[str, int] = field(default_factory=dict)
    faults: list[dict[str, str]] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Rows of the output."""
        return self.table.get(KEPT, 0)

    def add(self, notes: dict[str, Any]) -> None:
        """Count a shard."""
        self.shards += 1
        for reason, number in notes["yield"].items():
            self.table[reason] = self.table.get(reason, 0) + number
            self.rows += number
        for name, number in notes["entities"].items():
            self.entities[name] = self.entities.get(name, 0) + number
        self.faults += [{"shard": notes["source"]["name"], **fault} for fault in notes["faults"]]

    def lines(self) -> Iterator[tuple[str, int]]:
        """Yield the rows of the yield table: what was dropped for which reason, and what was kept."""
        yield from sorted((reason, number) for reason, number in self.table.items() if reason != KEPT)
        yield KEPT, self.kept

    def __str__(self) -> str:
        """The yield table in lines."""
        width = max(len(reason) for reason, _ in self.lines())
        lines = [f"{reason:{width}} {number:>10,} {number / max(self.rows, 1):7.1%}" for reason, number in self.lines()]
        lines.append(f"{'input':{width}} {self.rows:>10,}")
        lines.append(
            f"{self.entities.get('kept', 0):,} entities in {self.shards:,} shards, {self.made:,} of them made now"
        )
        return "\n".join(lines)


def run_build(plan: BuildPlan, report: Callable[[str], object] = lambda text: None) -> Built:
    """Build a data set of compositional samples, from where an interrupted call stopped.

    Raises: ConfigError for a stage or option; MissingError for a model or source that is not there, or where nothing
        is kept; UsageError for a folder of another construction; BusyError; KgError where a model fails.
    """
    check_engine(plan.engine)
    check_stages(plan.config)
    shards = shards_of(plan.source)
    if plan.folder.resolve() == plan.source.resolve():
        raise UsageError(f"{plan.folder} is the source itself; give another --to")
    folders = {name: find_model(name, offline=plan.offline) for name in models_of(plan.config)}
    facts = _facts(plan.config, {name: hash_model(folder) for name, folder in folders.items()})
    place = Place(plan.device, {name: str(folder.absolute()) for name, folder in folders.items()})
    with locked(plan.folder):
        remove_leftovers(plan.folder)
        tasks = _tasks(plan, shards, facts)
        missing = [task for task in tasks if _notes(task) is None]
        run = run_ray if plan.engine == "ray" else run_pool
        for number, notes in run(missing, plan.config, place, plan.num_workers) if missing else ():
            report(f"{missing[number].target.name}: {notes['yield'][KEPT]:,} of {sum(notes['yield'].values()):,} rows")
        built = _finish(plan, tasks, facts)
    built.made = len(missing)
    if not built.kept:
        raise MissingError(f"nothing of {plan.source} was kept:\n{built}".replace("\n", "; "))
    return built


def _facts(config: BuildConfig, hashes: dict[str, str]) -> dict[str, Any]:
    """Return what decides the output beside the input."""
    settings = config.model_dump(mode="json", include={"square", "size", "format", "quality"})
    return {"kgcli": __version__, **settings, "stages": stage_facts(config, hashes)}


def _tasks(plan: BuildPlan, shards: list[Path], facts: dict[str, Any]) -> list[ShardTask]:
    repeated = _repeated(plan, shards)
    tasks = []
    for number, shard in enumerate(shards):
        target = plan.folder.absolute() / shard_name(plan.name, number)
        decided_by = [facts, sha256(shard), repeated.get(shard.name, {})]
        digest = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
        tasks.append(ShardTask(shard.absolute(), target, digest, repeated.get(shard.name, {})))
    return tasks


def _notes(task: ShardTask) -> dict[str, Any] | None:
    """Return the notes of an output shard that is done, None if it has to be made.

    Raises: UsageError for one of another construction.
    """
    if not task.target.is_file():
        return None
    notes = read_notes(task.target)
    if not notes:  # killed between the tar and its index
        return None
    if notes.get("fingerprint") != task.fingerprint:
        raise UsageError(
            f"{task.target} was made from other data, models or settings; give another --to, or remove the folder"
        )
    return notes


def _finish(plan: BuildPlan, tasks: list[ShardTask], facts: dict[str, Any]) -> Built:
    """Write the list of shards, the card, the yield table and the faults."""
    built, entries = Built(), []
    for task in tasks:
        notes = _notes(task)
        assert notes is not None, f"{task.target} was made"
        built.add(notes)
        entries.append(ShardEntry(name=task.target.name, sha256=notes["sha256"], rows=notes["yield"][KEPT]))
    write_whole(plan.folder / YIELD, json.dumps({"input": built.rows, **dict(built.lines())}, indent=2) + "\n")
    if built.faults:
        write_whole(plan.folder / FAULTS, "".join(json.dumps(fault) + "\n" for fault in built.faults))
    rows = "\n".join(f"| {reason} | {number:,} |" for reason, number in built.lines())
    text = f"## Yield\n\n| what became of a row | rows |\n|---|---|\n{rows}\n| **input** | {built.rows:,} |\n"
    made_by = {"command": "kg data build compositional", **facts}
    write_dataset(plan.folder, entries, {"compositional": built.kept}, made_by=made_by, text=text)
    return built


def _repeated(plan: BuildPlan, shards: list[Path]) -> dict[str, dict[str, str]]:
    """Return by shard the keys of rows that repeat an earlier one, if the stages ask for it."""
    asked = [options for _, _, options in check_stages(plan.config) if isinstance(options, DuplicatesOptions)]
    if not asked:
        return {}
    make_folder(plan.folder / HASHES)
    hashes = (_hashes(plan, shard) for shard in shards)
    found = find_repeated(
        (
            replace(one, keys=[f"{shard.name}\0{key}" for key in one.keys])
            for shard, one in zip(shards, hashes, strict=True)
        ),
        image_bits=asked[0].image_bits,
        caption_likeness=asked[0].caption_likeness,
    )
    by_shard: dict[str, dict[str, str]] = {}
    for name, reason in found.items():
        shard, _, key = name.partition("\0")
        by_shard.setdefault(shard, {})[key] = reason
    return by_shard


def _hashes(plan: BuildPlan, shard: Path) -> Hashes:
    """Return the hashes of a shard, kept for the next call."""
    kept = plan.folder / HASHES / f"{shard.stem}-{sha256(shard)[:16]}-{int(plan.config.square)}-{HASH_RULES}.json"
    if kept.is_file():
        return Hashes(**json.loads(kept.read_text("utf-8")))
    found = Hashes([], [], [])
    seen: set[str] = set()
    for row in read_rows(shard):
        main = row.record.main_image if row.record else None
        if main is None or row.key in seen:
            continue
        try:
            image = decode_image(row.images[main], row.origin)
        except ImageError:
            continue
        seen.add(row.key)
        found.keys.append(row.key)
        found.images.append(image_hash(square(image) if plan.config.square else image))
        found.captions.append(caption_hashes(getattr(row.record, "caption", "")))
    write_whole(kept, json.dumps({"keys": found.keys, "images": found.images, "captions": found.captions}))
    return found

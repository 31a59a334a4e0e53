"""An import: the items of a foreign data set, a fixed number to a shard; shards that are there are not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kgcli.data.importers.base import Importer, ImportOptions, Item, Skipped
from kgcli.data.shards.layout import shard_name
from kgcli.data.shards.records import Record
from kgcli.data.shards.write import MAX_ROWS, Row, read_notes, write_dataset, write_shard
from kgcli.errors import KgError, MissingError, UsageError
from kgcli.files import locked, remove_leftovers, write_whole

FAULTS = "faults.jsonl"  # of the folder: origin and reason of each item that was not imported
RULES = 2  # raised with each change of what an importer makes of an item, so that no import goes on under other rules
MAX_NAMED = 1000  # faults of a shard that are named; all are counted


@dataclass
class Imported:
    """The result of an import."""

    rows: int = 0
    shards: int = 0
    kept: int = 0  # of the shards, from an earlier call
    skipped: dict[str, int] = field(default_factory=dict)  # rule of the layout -> items
    faults: int = 0
    first_fault: str = ""

    def __str__(self) -> str:
        """One line a number."""
        lines = [
            f"{self.rows:,} rows in {self.shards:,} shards" + (f", {self.kept:,} from before" if self.kept else "")
        ]
        lines += [f"{number:,} left out: {rule}" for rule, number in sorted(self.skipped.items())]
        if self.faults:
            lines.append(f"{self.faults:,} faults, listed in {FAULTS}; the first: {self.first_fault}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """An import and where it goes."""

    importer: Importer
    source: str
    folder: Path
    name: str  # of the shards
    options: ImportOptions = ImportOptions()
    rows_per_shard: int = MAX_ROWS  # items
    limit: int | None = None  # items
    stop_on_fault: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what decides the shards, for an interrupted import to compare; no folder names."""
        path = Path(self.source).expanduser()
        images = self.options.images
        return {
            "layout": self.importer.name,
            "rules": RULES,
            "source": path.name,
            "bytes": path.stat().st_size if path.is_file() else None,
            "images": images.name if images else None,
            "columns": dict(self.options.columns),
            "split": self.options.split,
            "all_captions": self.options.all_captions,
            "as_published": self.options.as_published,
            "rows_per_shard": self.rows_per_shard,
            **({"where": list(map(str, self.options.where))} if self.options.where else {}),
        }


def run_import(plan: ImportPlan, report: Callable[[str], object] = lambda text: None) -> Imported:
    """Import a foreign data set into a folder, from where an interrupted call stopped.

    Raises: UsageError for options that the layout has no use for or a folder of another import; MissingError for a
        source that is not of the layout, or with `stop_on_fault` the first item that cannot be read; BusyError.
    """
    _check_options(plan)
    total, kinds, entries, faults = Imported(), dict[str, int](), [], []
    with locked(plan.folder):
        remove_leftovers(plan.folder)
        for number, items in enumerate(_chunks(plan)):
            path = plan.folder / shard_name(plan.name, number)
            notes = _done(path, plan, items)
            if notes is None:
                notes = _make_shard(path, plan, number, items)
                report(f"{path.name}: {sum(notes['kinds'].values()):,} rows, {notes['faults']:,} faults")
            else:
                total.kept += 1
            _add(total, notes)
            faults += notes["named"]
            for kind, num in notes["kinds"].items():
                kinds[kind] = kinds.get(kind, 0) + num
            entries.append(notes["entry"])
        if not total.rows:
            reason = f"; the first fault: {total.first_fault}" if total.faults else ""
            raise MissingError(
                f"{plan.source} gave no row of {total.faults + sum(total.skipped.values()):,} items{reason}"
            )
        if faults:
            write_whole(plan.folder / FAULTS, "".join(json.dumps(fault) + "\n" for fault in faults))
        made_by = {"command": "kg data import", **plan.facts(), "left_out": total.skipped, "faults": total.faults}
        write_dataset(plan.folder, entries, kinds, made_by=made_by)
    return total


def _check_options(plan: ImportPlan) -> None:
    for name in ("images", "columns", "all_captions", "as_published", "where"):
        if getattr(plan.options, name) and name not in plan.importer.uses:
            flag = {"columns": "-c"}.get(name, "--" + name.replace("_", "-"))
            raise UsageError(f"{plan.importer.name} has no use for {flag}")


def _chunks(plan: ImportPlan) -> Iterator[list[Item]]:
    items = islice(plan.importer.items(plan.source, plan.options), plan.limit)
    while chunk := list(islice(items, plan.rows_per_shard)):
        yield chunk


def _done(path: Path, plan: ImportPlan, items: list[Item]) -> dict[str, Any] | None:
    """Return the notes of a shard that is there, None if it has to be made.

    Raises: UsageError where it holds other items, as another source of the same name gives.
    """
    if not path.is_file():
        return None
    notes = read_notes(path)
    if not notes:  # killed between the tar and its index
        return None
    num_items = notes.get("items", 0)
    if notes.get("made_by") != plan.facts() or notes.get("digest") != _digest(items[:num_items]):
        raise UsageError(f"{path} is of another import, source or version of kgcli; give another --to or --name")
    return _with_entry(path, notes) if len(items) == num_items else None  # the last of a shorter limit


def _digest(items: list[Item]) -> str:
    """Return the hash of what tells items from those of another source: their origins and sizes."""
    told = json.dumps([(item.origin, item.size) for item in items])
    return hashlib.sha256(told.encode()).hexdigest()


def _make_shard(path: Path, plan: ImportPlan, number: int, items: list[Item]) -> dict[str, Any]:
    rows: list[Row] = []
    skipped: dict[str, int] = {}
    named: list[dict[str, str]] = []
    faults = 0
    for place, item in enumerate(items):
        key = f"{number:05d}{place:05d}"
        try:
            filled = list(item.read())
        except Skipped as rule:
            skipped[str(rule)] = skipped.get(str(rule), 0) + 1
            continue
        except (KgError, ValidationError) as error:
            reason = str(error) if isinstance(error, KgError) else f"{item.origin}: {error.errors()[0]['msg']}"
            if plan.stop_on_fault:
                raise MissingError(reason) from None
            faults += 1
            if len(named) < MAX_NAMED:
                named.append({"shard": path.name, "origin": item.origin, "reason": reason})
            continue
        for part, (record, images) in enumerate(filled):
            rows.append(Row(key if len(filled) == 1 else f"{key}-{part}", record, images))
    notes = {
        "made_by": plan.facts(),
        "items": len(items),
        "digest": _digest(items),
        "kinds": _count(row.record for row in rows),
        "skipped": skipped,
        "faults": faults,
        "named": named,
    }
    entry = write_shard(path, rows, notes=notes)
    return {**notes, "entry": entry}


def _with_entry(path: Path, notes: dict[str, Any]) -> dict[str, Any]:
    from kgcli.data.shards.layout import ShardEntry

    entry = ShardEntry(name=path.name, sha256=notes["sha256"], rows=sum(notes["kinds"].values()))
    return {**notes, "entry": entry}


def _count(records: Iterator[Record]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for record in records:
        kinds[record.kind] = kinds.get(record.kind, 0) + 1
    return kinds


def _add(total: Imported, notes: dict[str, Any]) -> None:
    total.shards += 1
    total.rows += sum(notes["kinds"].values())
    total.faults += notes["faults"]
    if not total.first_fault and notes["named"]:
        total.first_fault = notes["named"][0]["reason"]
    for rule, number in notes["skipped"].items():
        total.skipped[rule] = total.skipped.get(rule, 0) + number

"""Checks of a folder of shards: hashes, indexes, records and images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgcli.data.looking.rows import SeenRow, counted, no_samples, read_rows, shards_of
from kgcli.data.shards.contents import open_images
from kgcli.data.shards.layout import DATASET, Dataset, index_path, pyarrow_parts, read_dataset
from kgcli.data.shards.write import row_hash
from kgcli.errors import KgError, MissingError
from kgcli.files import sha256


@dataclass
class Validation:
    """The findings of a check: rows by shard, and faults as (shard, text)."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    indexed: int = 0  # shards with an index
    left_out: int = 0  # groups of files that are no sample, as images that were not downloaded

    def __str__(self) -> str:
        """One line a fault, then the sum."""
        lines = [f"{shard}: {text}" for shard, text in self.faults]
        total = f"{counted(sum(self.rows.values()), 'row')} in {counted(len(self.rows), 'shard')}"
        total += f", {self.indexed:,} of them with an index"
        if self.left_out:
            total += f", and {no_samples(self.left_out)}"
        shards = len({shard for shard, _ in self.faults})
        faults = f"{counted(len(self.faults), 'fault')} in {counted(shards, 'file')}" if self.faults else "no faults"
        lines.append(f"{total}: {faults}")
        return "\n".join(lines)


def validate(path: Path, *, images: bool = True) -> Validation:
    """Check a folder of shards or one tar: its rows are faults exactly where training would refuse them.

    Args:
        images: decode every image

    Raises: MissingError where there are no shards.
    """
    found = Validation()
    shards = shards_of(path)
    listed = _listed(path, shards, found)
    keys: dict[str, str] = {}
    for shard in shards:
        index = _index(shard, found)
        entry = listed.get(shard.name)
        digest = sha256(shard) if entry or index is not None else ""
        if entry and entry.sha256 != digest:
            found.faults.append((shard.name, f"its sha256 is {digest}, not the {entry.sha256} of {DATASET}"))
        num = 0
        for row in read_rows(shard):
            num += bool(row.places) and not row.left_out
            found.left_out += bool(row.left_out)
            for fault in _row_faults(row, index, images=images):
                found.faults.append((shard.name, f"{row.key}: {fault}" if row.key else fault))
            if row.places and keys.setdefault(row.key, shard.name) != shard.name and entry:
                found.faults.append((shard.name, f"{row.key} is a key of {keys[row.key]} too"))
        found.rows[shard.name] = num
        if entry and entry.rows != num:
            found.faults.append((shard.name, f"it has {num} rows, not the {entry.rows} of {DATASET}"))
        for key in index or {}:
            found.faults.append((shard.name, f"{key} is in the index alone"))
    return found


def _listed(path: Path, shards: list[Path], found: Validation) -> dict[str, Any]:
    """Return the entries of dataset.json by name; a folder of others has none."""
    if not (path / DATASET).is_file():
        return {}
    try:
        dataset: Dataset = read_dataset(path)
    except KgError as error:
        found.faults.append((DATASET, str(error)))
        return {}
    names = {shard.name for shard in shards}
    for entry in dataset.shards:
        if entry.name not in names:
            found.faults.append((entry.name, f"{DATASET} lists it, but it is not there"))
    listed = {entry.name: entry for entry in dataset.shards}
    for name in sorted(names - set(listed)):
        found.faults.append((name, f"it is not listed in {DATASET}"))
    return listed


def _index(shard: Path, found: Validation) -> dict[str, Any] | None:
    """Return the lines of a shard's index by key, None where it has none of ours."""
    path = index_path(shard)
    if not path.is_file():
        return None
    pyarrow, parquet = pyarrow_parts()
    try:
        table = parquet.read_table(path)
        if not {"key", "members", "sha256", "width", "height"} <= set(table.column_names):
            return None  # img2dataset's own table
        lines = {line["key"]: line for line in table.to_pylist()}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        found.faults.append((path.name, f"it cannot be read: {' '.join(str(error).split())[:200]}"))
        return None
    found.indexed += 1
    return lines


def _row_faults(row: SeenRow, index: dict[str, Any] | None, *, images: bool) -> Iterator[str]:
    """Yield what is wrong with a row; takes its line out of the index."""
    line = index.pop(row.key, None) if index is not None else None
    if index is not None and row.places:
        if line is None:
            yield "it is not in the index"
        else:
            yield from _index_faults(row, line)
    if row.fault:
        yield row.fault
    if row.record is None or not images:
        return
    try:
        open_images(row.record, row.images)
    except MissingError as error:
        yield str(error)


def _index_faults(row: SeenRow, line: dict[str, Any]) -> Iterator[str]:
    told = {one["name"]: (one["offset"], one["size"]) for one in line["members"]}
    there = {name: (place.offset, place.size) for name, place in row.places.items()}
    if told != there:
        yield "the index has its files in other places"
    elif row.members and line["sha256"] != row_hash(row.members):
        yield "its content has changed since the index was made"

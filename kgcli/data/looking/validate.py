"""Checks of a folder of shards: hashes, indexes, records and images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgcli.data.images import decode_image
from kgcli.data.looking.rows import SeenRow, read_rows, shards_of
from kgcli.data.shards.layout import DATASET, Dataset, index_path, pyarrow_parts, read_dataset
from kgcli.data.shards.records import Compositional
from kgcli.data.shards.write import row_hash
from kgcli.errors import ImageError, KgError
from kgcli.files import sha256


@dataclass
class Validation:
    """The findings of a check: rows by shard, and faults as (shard, text)."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    indexed: int = 0  # shards with an index

    def __str__(self) -> str:
        """One line a fault, then the sum."""
        lines = [f"{shard}: {text}" for shard, text in self.faults]
        total = f"{sum(self.rows.values()):,} rows in {len(self.rows):,} shards, {self.indexed:,} of them with an index"
        shards = len({shard for shard, _ in self.faults})
        lines.append(f"{total}: " + (f"{len(self.faults):,} faults in {shards:,} files" if self.faults else "all well"))
        return "\n".join(lines)


def validate(path: Path, *, images: bool = True) -> Validation:
    """Check a folder of shards or one tar.

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
            num += not row.fault or bool(row.members)
            for fault in _row_faults(row, index, images=images):
                found.faults.append((shard.name, f"{row.key}: {fault}" if row.key else fault))
            if row.members and keys.setdefault(row.key, shard.name) != shard.name and entry:
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
    except (pyarrow.ArrowException, OSError) as error:
        found.faults.append((path.name, f"it cannot be read: {' '.join(str(error).split())[:200]}"))
        return None
    found.indexed += 1
    return lines


def _row_faults(row: SeenRow, index: dict[str, Any] | None, *, images: bool) -> Iterator[str]:
    """Yield what is wrong with a row; takes its line out of the index."""
    line = index.pop(row.key, None) if index is not None else None
    if index is not None and row.members:
        if line is None:
            yield "it is not in the index"
        else:
            yield from _index_faults(row, line)
    if row.fault:
        yield row.fault
    if row.record is None or not images:
        return
    sizes = {}
    for name, data in row.images.items():
        try:
            sizes[name] = decode_image(data, name).size
        except ImageError as error:
            yield str(error)
    if isinstance(row.record, Compositional):
        whole = sizes.get(row.record.image)
        for entity in row.record.entities:
            if entity.mask and whole and sizes.get(entity.mask, whole) != whole:
                yield f"the mask of {entity.noun!r} has another size than the image"


def _index_faults(row: SeenRow, line: dict[str, Any]) -> Iterator[str]:
    told = {one["name"]: (one["offset"], one["size"]) for one in line["members"]}
    there = {name: (row.places[name], len(data)) for name, data in row.members.items()}
    if told != there:
        yield "the index has its files in other places"
    elif line["sha256"] != row_hash(row.members):
        yield "its content has changed since the index was made"

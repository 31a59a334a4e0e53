"""The index of a source's shards: a memory-mapped Arrow file with a batch of rows per shard.

It is made once from the parquet files beside the shards, or from the headers of tars that have none, and kept in the
user's cache. Rows that filters drop are dropped here, so that numbers do not shift while a run reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kgcli.data.shards import storage
from kgcli.data.shards.filters import FAULT, RowFilter
from kgcli.data.shards.layout import NOTES, index_schema, pyarrow_parts, scan_schema
from kgcli.data.shards.parquet import has_rows, notes_of, read_table
from kgcli.data.shards.scan import first_columns, scan_tar
from kgcli.data.where import FIRST_ROWS
from kgcli.errors import MissingError, PassingError, printable
from kgcli.files import make_folder, whole_file, write_whole
from kgcli.recipe import FilterConfig

VERSION = 3  # of the cached files; another is made anew
UNTARGETED = "untargeted"
REQUESTS = 16  # servers are asked for the state of so many files at once


@dataclass(frozen=True)
class ShardInfo:
    """One shard of a source."""

    place: str  # path or URL
    rows: int  # kept by the filters
    dropped: int  # by the filters, or because they are no sample
    fingerprint: str  # of its rows
    fault: str = ""  # what was wrong with it when the index was made
    stamp: str = ""  # size and version of its file; empty where it is not there
    kinds: tuple[str, ...] = ()  # of its rows that can be read; prompts without an image to be generated: UNTARGETED


@dataclass(frozen=True)
class Member:
    """A file of a row inside its tar."""

    name: str  # suffix after the key
    offset: int  # bytes
    size: int


@dataclass(frozen=True)
class IndexRow:
    """A row: its shard, its key and its members."""

    place: str
    key: str
    kind: str
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """Shard and key, for messages."""
        return f"{self.place} {self.key}"


class Index:
    """All rows of a source's shards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = [
            ShardInfo(**{**one, "kinds": tuple(one["kinds"])})
            for one in json.loads(path.with_suffix(".json").read_text("utf-8"))
        ]
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shards": self.shards}  # a worker process maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.shards = state["path"], state["shards"]
        self._open()

    def _open(self) -> None:
        pyarrow, _ = pyarrow_parts()
        self._file = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
        self._batches: dict[int, tuple[Any, Any, Any]] = {}

    def row(self, shard: int, place: int) -> IndexRow:
        """Return a row of a shard."""
        if shard not in self._batches:
            batch = self._file.get_batch(shard)
            self._batches[shard] = tuple(batch.column(name) for name in ("key", "kind", "members"))
        key, kind, members = (column[place].as_py() for column in self._batches[shard])
        return IndexRow(self.shards[shard].place, key, kind, tuple(Member(**member) for member in members))


def open_index(places: Sequence[str], filters: FilterConfig, cache: Path | None = None) -> Index:
    """Return the index of shards, made now unless the cache has it.

    A shard that has vanished keeps the rows that its parquet file or the cache knows of: reading one is a fault.

    Raises: UsageError without pyarrow or for a wrong filter, OutputError where the cache cannot be written,
        PassingError where a shard or the file beside it is not reached now: samples would have other numbers.
    """
    pyarrow_parts()
    row_filter = RowFilter(filters)
    folder = cache or cache_folder()
    make_folder(folder)
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = list(pool.map(_stamp, [*places, *map(_beside, places)]))
    stamps = [None if one is None else asdict(one) for one in found]
    decides = [VERSION, list(places), stamps, filters.model_dump(mode="json")]
    path = folder / f"{_sha256(decides)}.arrow"
    with FileLock(folder / f"{path.stem}.lock"):  # several processes of one run open the same source
        if not path.is_file():
            shards = zip(places, found[: len(places)], found[len(places) :], strict=True)
            _make(path, [_Shard(*one, folder) for one in shards], row_filter)
    return Index(path)


def cache_folder() -> Path:
    """Return the folder of the user's cache for indices."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "kgcli" / "shards"


def _stamp(place: str) -> storage.Stamp | None:
    """Return size and version of a file, None where it is not there. Raises: PassingError where it is not reached."""
    try:
        return storage.stamp(place)
    except PassingError:
        raise
    except MissingError:
        return None


@dataclass(frozen=True)
class _Shard:
    """A shard whose rows are looked up: in its parquet file, in the cache, in the tar itself."""

    place: str
    stamp: storage.Stamp | None  # of the tar, None where it is not there
    beside: storage.Stamp | None  # of the parquet file
    folder: Path  # of the cache

    def rows(self) -> tuple[Any, str, int, str]:
        """Return a table of all rows, what identifies the content, the number of groups that are no sample, and a
        fault."""
        own = self._own()
        if own is not None:
            identity = str((notes_of(own) or {}).get("sha256", "")) or self._identity()
            return own, identity, 0, self._fault(own)
        scanned = self._scanned()
        if scanned is None:
            return scan_schema().empty_table(), self._identity(), 0, "it is not there"
        noted = json.loads(scanned.schema.metadata[NOTES])
        return scanned, self._identity(), noted["skipped"], noted["fault"] if self.stamp else "it is not there"

    def _own(self) -> Any:
        """Return the index beside the tar, None where there is none, or another program's or a damaged one."""
        if self.beside is None:
            return None
        own = read_table(_beside(self.place), index_schema())
        return own if own is not None and notes_of(own) is not None and has_rows(own) else None

    def columns(self) -> Iterator[Collection[str]]:
        """Yield the columns of each row that can be read: of all where the tar was scanned before, or else of the
        first; none of ours.

        Raises: MissingError where the tar cannot be read.
        """
        if self._own() is not None:  # read again for the rows: tables of thousands of shards are not kept
            yield ()
            return
        known = self._known()
        if known is not None:
            lines = zip(known.column("kind").to_pylist(), known.column("told").to_pylist(), strict=True)
            yield from (json.loads(told) for kind, told in lines if kind != FAULT)
        elif self.stamp is not None:
            yield from first_columns(self.place, self.stamp.size)

    def _fault(self, table: Any) -> str:
        if self.stamp is None:
            return "it is not there"
        last = table.column("members")[-1].as_py()[-1] if table.num_rows else {"offset": 0, "size": 0}
        return "it is cut short" if last["offset"] + last["size"] > self.stamp.size else ""

    def _identity(self) -> str:
        return f"{self.place} {self.stamp}"

    def _scanned(self) -> Any:
        """Return the rows of a tar without an index, from the cache if it is as it was, or not there any more."""
        known = self._known()
        if known is not None or self.stamp is None:
            return known
        _, parquet = pyarrow_parts()
        found = scan_tar(self.place)
        noted = {"stamp": asdict(self.stamp), "skipped": found.num_skipped, "fault": found.fault}
        table = found.table.replace_schema_metadata({NOTES: json.dumps(noted)})
        with whole_file(self._cached) as partial:
            parquet.write_table(table, partial, compression="zstd")
        return table

    def _known(self) -> Any:
        """Return the rows of a tar that was scanned before and is as it was or not there any more, None of another."""
        known = read_table(str(self._cached), scan_schema())
        if known is None:
            return None
        is_same = self.stamp is None or json.loads(known.schema.metadata[NOTES])["stamp"] == asdict(self.stamp)
        return known if is_same else None

    @property
    def _cached(self) -> Path:
        return self.folder / f"{_sha256([VERSION, self.place])}.parquet"


def _make(path: Path, shards: Sequence[_Shard], row_filter: RowFilter) -> None:
    """Write the index of all shards; its JSON first, as the Arrow file marks it complete."""
    pyarrow, _ = pyarrow_parts()
    first, *others = (shard.place for shard in shards)
    name = f"{first}, like all after it," if others else first
    row_filter.look_for_columns(
        (columns for shard in shards for columns in shard.columns()), f"{name} in its first {FIRST_ROWS} rows"
    )
    infos = []
    with whole_file(path) as partial:
        with pyarrow.ipc.new_file(str(partial), index_schema()) as writer:
            for shard in shards:
                table, identity, skipped, fault = shard.rows()
                kept = row_filter.kept(table).select(index_schema().names)
                (batch,) = kept.combine_chunks().to_batches() or [None]
                writer.write_batch(batch or pyarrow.RecordBatch.from_pylist([], schema=index_schema()))
                keys = kept.column("key").to_pylist()
                infos.append(
                    ShardInfo(
                        place=shard.place,
                        rows=len(keys),
                        dropped=skipped + table.num_rows - len(keys),
                        fingerprint=_sha256([identity, keys]),
                        fault=fault,
                        stamp=f"{shard.stamp.size} {shard.stamp.version}" if shard.stamp else "",
                        kinds=_kinds(kept),
                    )
                )
        row_filter.check(name)
        write_whole(path.with_suffix(".json"), json.dumps([asdict(info) for info in infos]))


def _kinds(table: Any) -> tuple[str, ...]:
    kinds = zip(table.column("kind").to_pylist(), table.column("width").to_pylist(), strict=True)
    found = {UNTARGETED if kind == "prompt" and not width else kind for kind, width in kinds}
    return tuple(sorted(found - {FAULT}))


def _beside(place: str) -> str:
    """Return the parquet file beside a tar."""
    return place.removesuffix(".tar") + ".parquet"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def describe_fault(info: ShardInfo) -> str:
    """Return a shard's fault as a line."""
    return f"shard {printable(info.place)}: {info.fault}; {info.rows} rows of it are known"

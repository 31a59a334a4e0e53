"""Tables of a shard's rows in parquet files: the index beside a tar, and what the cache keeps of a scanned one."""

from __future__ import annotations

from typing import Any

from kgcli.data.shards import storage
from kgcli.data.shards.contents import IMAGE
from kgcli.data.shards.layout import NOTES, pyarrow_parts
from kgcli.data.shards.records import KINDS
from kgcli.errors import MissingError, PassingError
from kgcli.reading import parse_json

MAX_INDEX_BYTES = 2**30  # of the parquet file of one shard


def read_table(place: str, schema: Any) -> Any:
    """Return the table of a file with the columns of a schema; None if it is not there, damaged or another's.

    Raises: PassingError where that cannot be known now.
    """
    pyarrow, parquet = pyarrow_parts()
    try:
        table = parquet.read_table(pyarrow.BufferReader(storage.read_all(place, MAX_INDEX_BYTES)))
        metadata = table.schema.metadata
        return table.select(schema.names).cast(schema).replace_schema_metadata(metadata)
    except PassingError:
        raise
    except (MissingError, KeyError, TypeError, ValueError, OSError, pyarrow.ArrowException):
        return None


def notes_of(table: Any) -> dict[str, Any] | None:
    """Return the metadata of an index, empty without any; None where they are damaged or another's."""
    try:
        notes = parse_json((table.schema.metadata or {}).get(NOTES, b"{}"), name="the index")
    except MissingError:
        return None
    return notes if isinstance(notes, dict) and isinstance(notes.get("sha256", ""), str) else None


def has_rows(table: Any) -> bool:
    """Tell if each row of a table has a key, a known kind, members and numbers, as an index has."""
    pyarrow, _ = pyarrow_parts()
    import pyarrow.compute as compute

    try:
        table.validate(full=True)
    except pyarrow.ArrowException:
        return False
    if any(table.column(name).null_count for name in ("key", "kind", "members", "width", "height", "num_tokens")):
        return False
    kinds = compute.unique(table.column("kind")).to_pylist()
    fewest = compute.min(compute.list_value_length(table.column("members"))).as_py()
    members = compute.list_flatten(table.column("members"))
    fields = [compute.struct_field(members, name) for name in ("name", "offset", "size")]
    return {*kinds} <= {*KINDS, IMAGE} and fewest != 0 and not any(one.null_count for one in (members, *fields))

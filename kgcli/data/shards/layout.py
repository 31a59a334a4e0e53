"""Files of a folder of shards.

cats-00000.tar      members {key}.json and {key}.jpg, {key}.0.jpg ...: any WebDataset tool reads it
cats-00000.parquet  its index: where each member is, the size of the image, hashes and flags
dataset.json        all shards with their hashes, rows by kind, what made them
README.md           the dataset card
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kgcli.errors import MissingError, UsageError
from kgcli.reading import PathBelow, read_json

FORMAT: Literal["kgcli-shards"] = "kgcli-shards"
VERSION: Literal[1] = 1
DATASET = "dataset.json"
CARD = "README.md"
NOTES = b"kgcli"  # key of the index's metadata: JSON with the shard's sha256 and what made it
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII)  # no dot: WebDataset ends a key at the first


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Strict):
    """One shard of a data set."""

    name: PathBelow  # of the tar file
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the tar file
    rows: int = Field(ge=0)


class Dataset(_Strict):
    """The content of dataset.json."""

    format: Literal["kgcli-shards"] = FORMAT
    version: Literal[1] = VERSION
    shards: tuple[ShardEntry, ...]
    kinds: dict[str, int]  # kind of record -> number of rows
    made_by: dict[str, Any] = {}  # program, version and settings; no times, so that equal data are equal files


def read_dataset(folder: Path) -> Dataset:
    """Read the dataset.json of a folder. Raises: MissingError."""
    value = read_json(folder / DATASET)
    try:
        return Dataset.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise MissingError(f"{folder / DATASET} is not a list of shards: {where}: {first['msg']}") from None


def shard_name(source: str, number: int) -> str:
    """Return the name of a shard's tar file. Raises: UsageError for a name of a source that a tar cannot have."""
    if not _SOURCE.fullmatch(source):
        raise UsageError(f"{source[:80]!r} cannot name shards: take letters, digits, - and _, at most 64")
    return f"{source}-{number:05d}.tar"


def index_path(shard: Path) -> Path:
    """Return the index beside a shard."""
    return shard.with_suffix(".parquet")


def is_key(key: str) -> bool:
    """Tell if a key is fit for a member's name."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """Return a key that is fit for a member's name. Raises: UsageError."""
    if not is_key(key):
        raise UsageError(f"{key[:100]!r} cannot be a key: take letters, digits, - and _, at most 80")
    return key


def scan_schema() -> Any:
    """Return the columns of a scanned tar: those of an index, and what the JSON of a foreign row tells beside them."""
    pyarrow, _ = pyarrow_parts()
    return index_schema().append(pyarrow.field("told", pyarrow.string()))  # JSON: `filters.told_text`


def pyarrow_parts() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet. Raises: UsageError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("shards need pyarrow: pip install 'kgcli[data]'") from None
    return pyarrow, pyarrow.parquet


def index_schema() -> Any:
    """Return the columns of an index as a pyarrow schema."""
    pyarrow, _ = pyarrow_parts()
    member = pyarrow.struct([("name", pyarrow.string()), ("offset", pyarrow.int64()), ("size", pyarrow.int64())])
    return pyarrow.schema(
        [
            ("key", pyarrow.string()),
            ("kind", pyarrow.string()),
            ("members", pyarrow.list_(member)),  # name: the suffix after the key, as "json" or "0.jpg"
            ("width", pyarrow.int32()),  # pixels of the main image, 0 without one
            ("height", pyarrow.int32()),
            ("num_tokens", pyarrow.int32()),  # of the words, 0 where they were not counted
            ("sha256", pyarrow.string()),  # of the row: `row_hash`
            ("flags", pyarrow.list_(pyarrow.string())),  # what filters noted about a row that was kept
        ]
    )

"""Lines of a user's file: txt, jsonl, json, csv, tsv or parquet, each with its place for messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.data.textfiles import read_entries
from kgcli.errors import KgError, MissingError, UsageError

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_BYTES = 4 * 2**30  # of a file of texts; more belong into several


@dataclass(frozen=True)
class Line:
    """One line of a file: its columns, and "FILE line N"."""

    origin: str
    values: dict[str, Any]

    def text(self, *names: str) -> str:
        """Return the text of the first of some columns that is there.

        Raises: MissingError if there is none, or it is empty or not a text.
        """
        for name in names:
            if name in self.values:
                value = self.values[name]
                if not isinstance(value, str) or not value.strip():
                    raise MissingError(f"{self.origin}: {name} is {value!r}; it must be a text that is not empty")
                return value.strip()
        there = ", ".join(map(str, self.values)) or "nothing"
        raise MissingError(f"{self.origin} has no {' or '.join(names)}; it has {there}")


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be read."""

    origin: str
    fault: MissingError


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file by its suffix.

    Raises: MissingError that names the file and the line; UsageError for another kind of file.
    """
    lines = []
    for one in walk_lines(path):
        if isinstance(one, BadLine):
            raise one.fault
        lines.append(one)
    return lines


def walk_lines(path: Path) -> Iterator[Line | BadLine]:
    """Yield the lines of a file by its suffix, a damaged one with its fault.

    Raises: MissingError where the file as a whole cannot be read; UsageError for another kind of file.
    """
    if path.suffix.lower() not in SUFFIXES:
        if not path.exists():
            raise MissingError(f"data.sources: there is no file or folder {path}")
        raise UsageError(f"data.sources: {path} is none of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingError(f"data.sources: there is no file {path}")
    empty = True
    for line in _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_texts(path):
        empty = False
        yield line
    if empty:
        raise MissingError(f"data.sources: {path} is empty")


def _read_texts(path: Path) -> Iterator[Line | BadLine]:
    for place, value in read_entries(str(path), max_bytes=MAX_BYTES):
        origin = f"{path} {place}"
        if isinstance(value, str):
            value = {"caption": value}
        if isinstance(value, KgError):
            yield BadLine(origin, MissingError(f"{origin}: {value}"))
        elif not isinstance(value, dict):
            yield BadLine(origin, MissingError(f"{origin} is neither a text nor an object with names"))
        else:
            yield Line(origin, value)


def _read_parquet(path: Path) -> list[Line]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f"data.sources: {path} needs pyarrow: pip install 'kgcli[data]'") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise MissingError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from None
    return [Line(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]

"""Lines of a user's file: txt, jsonl, csv, tsv or parquet, each with its place for messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.errors import MissingError, UsageError

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Line:
    """One line of a file: its columns, and "FILE line N"."""

    origin: str
    values: dict[str, Any]

    def text(self, *names: str) -> str:
        """Return the text of the first of some columns that is there.

        Raises: MissingError where none is, or it is empty or no text.
        """
        for name in names:
            if name in self.values:
                value = self.values[name]
                if not isinstance(value, str) or not value.strip():
                    raise MissingError(f"{self.origin}: {name} is {value!r}; it must be a text that is not empty")
                return value.strip()
        there = ", ".join(map(str, self.values)) or "nothing"
        raise MissingError(f"{self.origin} has no {' or '.join(names)}; it has {there}")


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file by its suffix.

    Raises: MissingError that names the file and the line; UsageError for another kind of file.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"data.sources: {path} is none of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingError(f"data.sources: there is no file {path}")
    if path.suffix == ".parquet":
        lines = _read_parquet(path)
    else:
        texts = list(_decode(path))
        lines = {".txt": _read_txt, ".jsonl": _read_jsonl}.get(path.suffix, _read_csv)(path, texts)
    if not lines:
        raise MissingError(f"data.sources: {path} is empty")
    return lines


def _decode(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, without their ends."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise MissingError(f"{path} line {number} is not UTF-8 text") from None


def _read_txt(path: Path, texts: list[str]) -> list[Line]:
    """One caption per line; blank lines are left out."""
    return [
        Line(f"{path} line {number}", {"caption": text}) for number, text in enumerate(texts, start=1) if text.strip()
    ]


def _read_jsonl(path: Path, texts: list[str]) -> list[Line]:
    """An object per line, or a string, which is a caption."""
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        origin = f"{path} line {number}"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MissingError(f"{origin} is no JSON: {error}") from None
        if isinstance(value, str):
            value = {"caption": value}
        if not isinstance(value, dict):
            raise MissingError(f"{origin} is neither a JSON object nor a string")
        lines.append(Line(origin, value))
    return lines


def _read_csv(path: Path, texts: list[str]) -> list[Line]:
    """Columns named by the first line."""
    lines, start = [], 2
    reader = csv.DictReader((text + "\n" for text in texts), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        for row in reader:
            origin, start = f"{path} line {start}", reader.line_num + 1
            if None in row or None in row.values():
                raise MissingError(f"{origin} has another number of columns than the first line")
            lines.append(Line(origin, row))
    except csv.Error as error:
        raise MissingError(f"{path} line {reader.line_num} is no CSV: {error}") from None
    return lines


def _read_parquet(path: Path) -> list[Line]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f"data.sources: {path} needs pyarrow: pip install 'kgcli[data]'") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise MissingError(f"{path} is no parquet file: {' '.join(str(error).split())}") from None
    return [Line(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]

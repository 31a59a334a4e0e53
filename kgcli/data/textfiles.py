"""Files of many texts: one text per line, JSON, JSON lines or a table.

.txt, others   one text a line; newlines alone end a line, not the other characters that Unicode calls line ends
.jsonl         one JSON value a line
.json          a list of texts or objects
.csv, .tsv     a table whose first line names the columns
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kgcli.errors import KgError, MissingError, UsageError, printable
from kgcli.reading import parse_json, read_text

MAX_BYTES = 64 * 2**20
TABLES = {".csv": ",", ".tsv": "\t"}
_LINE_END = re.compile(r"\r\n|\n|\r")

Entry = tuple[str, Any]  # `line 3`, and a text, a JSON value, a row of a table, or the error in the place of one


def read_entries(source: str, *, error: type[KgError] = MissingError, max_bytes: int = MAX_BYTES) -> Iterator[Entry]:
    """Yield each non-blank text of a file ("-" is stdin); a bad line yields an error in its place.

    Raises: `error` where the file as a whole cannot be read.
    """
    suffix = Path(source).suffix.lower()
    if source == "-":
        text = _read_stdin(error)
    else:
        text = read_text(Path(source).expanduser(), max_bytes=max_bytes, error=error)
    if suffix == ".json":
        yield from _of_list(parse_json(text, name=printable(source), error=error), source, error)
    elif suffix in TABLES:
        yield from _of_table(text, TABLES[suffix], source, error)
    else:
        for number, line in enumerate(_LINE_END.split(text), start=1):
            if line.strip():
                as_json = suffix == ".jsonl" or line.lstrip().startswith("{")
                yield f"line {number}", _json_or_error(line) if as_json else line


def _read_stdin(error: type[KgError]) -> str:
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise error(f"stdin is too large: the limit is {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"stdin is not UTF-8 text (byte {fault.start})") from None


def _json_or_error(line: str) -> Any:
    try:
        return parse_json(line, name="the line", error=UsageError)
    except UsageError as error:
        return error


def _of_list(value: Any, source: str, error: type[KgError]) -> Iterator[Entry]:
    if not isinstance(value, list) or not all(isinstance(one, str | dict) for one in value):
        raise error(f"{printable(source)} must hold a JSON list of texts or of objects")
    for number, one in enumerate(value, start=1):
        yield f"entry {number}", one


def _of_table(text: str, delimiter: str, source: str, error: type[KgError]) -> Iterator[Entry]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                yield f"line {reader.line_num}", UsageError("it has more cells than the first line names columns")
            elif any(row.values()):
                yield f"line {reader.line_num}", {name: value for name, value in row.items() if value}
    except csv.Error as fault:
        raise error(f"{printable(source)}, line {reader.line_num}: {fault}") from None

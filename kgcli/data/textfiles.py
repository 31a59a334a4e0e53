"""Files of many texts: one text per line, JSON, JSON lines or a table.

.txt, others   one text a line, ended by a line feed, a carriage return or both, not by Unicode's other line ends
.jsonl         one JSON value a line
.json          a list of texts or objects
.csv, .tsv     a table whose first line names the columns
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kgcli.errors import KgError, MissingError, UsageError, printable
from kgcli.reading import parse_json, read_bytes

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
        data = _read_stdin(error)
    else:
        data = read_bytes(Path(source).expanduser(), max_bytes=max_bytes, error=error)
    text = _decode(data, "stdin" if source == "-" else printable(source), error, by_line=suffix != ".json")
    if suffix == ".json":
        yield from _of_list(parse_json(text, name=printable(source), error=error), source, error)
    elif suffix in TABLES:
        yield from walk_table(io.StringIO(text, newline=""), TABLES[suffix], source, error=error)
    else:
        for number, line in enumerate(_LINE_END.split(text), start=1):
            if line.strip():
                as_json = suffix == ".jsonl" or line.lstrip().startswith("{")
                yield f"line {number}", _undecoded(line) or (_json_or_error(line) if as_json else line)


def read_columns(path: Path) -> list[str]:
    """Return the columns that the first line of a table names, none where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            columns = next(csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True), [])
    except (csv.Error, OSError):  # reading the rows tells what is wrong
        return []
    return [] if _undecoded("".join(columns)) else columns


def walk_table(
    lines: Iterable[str], delimiter: str, source: str, *, error: type[KgError] = MissingError, strict: bool = True
) -> Iterator[Entry]:
    """Yield the rows of a table without their empty cells; a bad row yields an error in its place.

    Args:
        lines: with their ends; bytes that are not UTF-8 as surrogates
        strict: refuse what is not quoted as it should be

    Raises: `error` where the first line cannot be read.
    """
    reader = csv.DictReader(lines, delimiter=delimiter, strict=strict)
    try:
        reader.fieldnames  # noqa: B018  # read here: a fault of it is one of the whole table
    except csv.Error as fault:
        raise error(f"{printable(source)}, line 1: {fault}") from None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:  # the next line begins anew
            yield f"line {reader.reader.line_num}", UsageError(f"it is damaged: {fault}")
            continue
        if None in row:
            yield f"line {reader.line_num}", UsageError("it has more cells than the first line names columns")
        elif any(row.values()):
            cells = {name: value for name, value in row.items() if value}
            yield f"line {reader.line_num}", _undecoded("".join(cells.values())) or cells


def _read_stdin(error: type[KgError]) -> bytes:
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise error(f"stdin is too large: the limit is {MAX_BYTES:,} bytes")
    return data


def _decode(data: bytes, name: str, error: type[KgError], *, by_line: bool) -> str:
    """Return a file's text; with `by_line`, bytes that are not UTF-8 become surrogates, for their lines to be bad.

    Raises: `error`, also for UTF-16, of which no line could be read.
    """
    if by_line and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{name} is not UTF-8 text (byte {fault.start}); save it as UTF-8") from None


def _undecoded(text: str) -> UsageError | None:
    """Return the error of a text in which bytes were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return UsageError("it is not UTF-8 text")
    return None


def _json_or_error(line: str) -> Any:
    try:
        return parse_json(line, name="the line", error=UsageError)
    except UsageError as error:
        return error


def _of_list(value: Any, source: str, error: type[KgError]) -> Iterator[Entry]:
    if not isinstance(value, list):
        raise error(f"{printable(source)} must hold a JSON list of texts or of objects")
    for number, one in enumerate(value, start=1):
        fault = UsageError("it is neither a text nor an object")
        yield f"entry {number}", one if isinstance(one, str | dict) else fault

"""Conditions on the columns of a foreign data set, as `similarity >= 0.28`: which of its rows are taken."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kgcli.errors import UsageError, printable

FLAG = "--where"
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^<>=!]+?)"""  # within quotes, signs of comparison are a text's own
_CONDITION = re.compile(rf"\s*([^<>=!]+?)\s*({'|'.join(_COMPARE)})\s*({_VALUE})\s*")
_BOOLEANS = ("true", "false")  # in any case: JSON has true where Python and tables have True
FIRST_ROWS = 100  # of a tar or folder of another program: its columns come up in these
_MOST_LISTED = 20  # columns named in a message


@dataclass(frozen=True)
class Condition:
    """A column, a comparison, and what the column is compared with: a number, or a text by == and !=."""

    column: str
    compare: str
    value: int | float | str  # whole numbers of any size are compared exactly

    def __str__(self) -> str:
        """The condition as `parse_condition` reads it, with all its digits."""
        if not isinstance(self.value, str):
            return f"{self.column} {self.compare} {self.value!r}"
        quote = "'" if '"' in self.value and "'" not in self.value else '"'
        return f"{self.column} {self.compare} {quote}{self.value}{quote}"

    def holds(self, cell: Any) -> bool | None:
        """Tell if a cell meets the condition; None for one that says nothing: it is empty, or no number."""
        given = _text(cell) if isinstance(self.value, str) else _number(cell)
        return None if given is None else _COMPARE[self.compare](_folded(given), _folded(self.value))


def parse_condition(text: str, *, name: str = FLAG) -> Condition:
    """Return the condition of a text: COLUMN, one of >= <= > < == !=, and a number or a text, quoted or not.

    `name` is where it was written, for messages.

    Example:
        >>> parse_condition("similarity >= 0.28")
        Condition(column='similarity', compare='>=', value=0.28)

    Raises: UsageError.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{name} is {printable(text)[:100]!r}; write COLUMN, one of {' '.join(_COMPARE)}, and a number or a text, "
            'as "similarity >= 0.28"'
        )
    column, compare, written = found.groups()
    number = _number(written)
    if number is not None:
        return Condition(column, compare, number)
    value = written[1:-1] if len(written) > 1 and written[0] == written[-1] and written[0] in "\"'" else written
    if compare not in ("==", "!="):
        raise UsageError(f"{name} is {printable(text)[:100]!r}: {compare} compares numbers; a text takes == or !=")
    if not value and compare == "==":
        others = printable(f'{column} != ""')[:100]
        raise UsageError(
            f"{name} is {printable(text)[:100]!r}: an empty cell meets no condition; {others} takes the others"
        )
    return Condition(column, compare, value)


def check_columns(conditions: Iterable[Condition], columns: Collection[str], source: str, *, name: str = FLAG) -> None:
    """See that a source has the columns of all conditions. Raises: UsageError that names the nearest."""
    for condition in conditions:
        if condition.column in columns:
            continue
        near = difflib.get_close_matches(condition.column, columns, 1, 0.6)
        listed = ", ".join(sorted(columns)[:_MOST_LISTED]) or "none"
        hint = f"did you mean {near[0]}?" if near else f"it has {listed}"
        raise UsageError(
            f"{name}: {printable(source)} has no column {printable(condition.column)[:100]}; {printable(hint)}"
        )


def look_for_columns(
    conditions: Iterable[Condition], rows: Iterable[Collection[str]], source: str, *, name: str = FLAG
) -> None:
    """See that a source has the columns of all conditions; a source without a row that can be read may have any.

    Args:
        rows: columns of each row that can be read, of which no more are asked for than it takes

    Raises: UsageError.
    """
    conditions = list(conditions)
    wanted, found, is_read = {one.column for one in conditions}, set[str](), False
    for columns in rows if wanted else ():
        is_read = True
        found.update(columns)
        if wanted <= found:
            return
    if is_read:
        check_columns(conditions, found, source, name=name)


def unmet(conditions: Iterable[Condition], cells: Mapping[str, Any]) -> str:
    """Return why a row is left out by the first condition that it does not meet, an empty text if it meets all."""
    for condition in conditions:
        holds = condition.holds(cells.get(condition.column))
        if not holds:
            return f"{condition.column} is not known" if holds is None else f"{condition} does not hold"
    return ""


def _number(cell: Any) -> int | float | None:
    """Return a cell as a number, None for one that is none; tables hold their numbers as texts."""
    if isinstance(cell, str):
        try:
            return int(cell)
        except ValueError:  # no whole number
            pass
    if isinstance(cell, int):
        return int(cell)
    if not isinstance(cell, float | str):
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(cell: Any) -> str | None:
    return str(cell) if isinstance(cell, int | float | str) and str(cell) else None


def _folded(value: int | float | str) -> int | float | str:
    """Return a truth value in small letters, and all else as it is."""
    return value.lower() if isinstance(value, str) and value.lower() in _BOOLEANS else value

"""Filters of shards' rows by the columns of their index, and by those of the data they come from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgcli.data.where import check_columns, look_for_columns, parse_condition, unmet
from kgcli.errors import UsageError
from kgcli.recipe import FilterConfig

FAULT = "fault"  # kind of a row that cannot be read: it keeps its number, and reading it tells why
WHERE = "data.sources: filters.where"
MAX_COLUMNS = 256  # of a row; the first ones are kept
MAX_CELL = 64  # characters of a column's name or text, so that captions and addresses are not kept twice
MAX_BITS = 64  # of a whole number
LONG = "sha256"  # name under which the hash of a longer text is kept

_log = logging.getLogger(__name__)


class RowFilter:
    """The filters of a source's shards; a column of its conditions may be in some of the shards alone.

    Raises: UsageError for a condition that cannot be read.
    """

    def __init__(self, filters: FilterConfig) -> None:
        self.filters = filters
        self.conditions = [parse_condition(text, name=WHERE) for text in filters.where]
        self._columns: set[str] = set()  # of all shards so far
        self._is_read = False  # one of the rows so far is no fault
        self._has_own = False  # one of the shards says nothing of where its rows came from
        texts = [one.value for one in self.conditions if isinstance(one.value, str)]
        self._texts = {_sha256(text): text for text in texts}

    def kept(self, table: Any) -> Any:
        """Return the rows of a shard's table that pass; what is not known of a row, as its image's size (0), passes.

        Args:
            table: a scanned one where there are conditions on columns
        """
        filters = self.filters
        if filters == FilterConfig():
            return table
        width, height, tokens = (table.column(name).to_numpy() for name in ("width", "height", "num_tokens"))
        kinds = np.array(table.column("kind").to_pylist(), dtype=str)
        shorter, longer = np.minimum(width, height), np.maximum(width, height)
        keep = (shorter == 0) | (shorter >= filters.min_side)
        if filters.max_aspect is not None:
            keep &= longer <= filters.max_aspect * shorter
        if filters.max_tokens is not None:
            keep &= tokens <= filters.max_tokens
        if filters.kinds:
            keep &= np.isin(kinds, filters.kinds) | (kinds == FAULT)
        if filters.without_flags:
            flags, refused = table.column("flags").to_pylist(), set(filters.without_flags)
            keep &= np.array([refused.isdisjoint(one or ()) for one in flags], bool)
        if self.conditions:
            keep &= self._meets(table) | (kinds == FAULT)
        return table.filter(keep)

    def look_for_columns(self, rows: Iterable[Collection[str]], name: str) -> None:
        """Warn of a column of the conditions that shards seem not to have, before they are scanned.

        `check` refuses it once all rows are known, so that what scans a cache has already changes no outcome.

        Args:
            rows: columns of each row, of which no more are asked for than it takes
            name: of the rows, for messages
        """
        try:
            look_for_columns(self.conditions, rows, name, name=WHERE)
        except UsageError as error:
            _log.warning("%s; it is refused if no row has it", error)

    def check(self, name: str) -> None:
        """See that the shards, all of them filtered, have the columns of all conditions.

        Args:
            name: of the shards, for messages

        Raises: UsageError.
        """
        if self._is_read or self._has_own:
            check_columns(self.conditions, self._columns, name, name=WHERE)

    def _meets(self, table: Any) -> NDArray[np.bool_]:
        """Tell of each row if it meets the conditions; one that does not tell a column does not."""
        if "told" not in table.column_names:  # an index of ours
            self._has_own = True
            return np.zeros(table.num_rows, bool)
        self._is_read |= any(kind != FAULT for kind in table.column("kind").to_pylist())
        cells = [self._cells(json.loads(told)) for told in table.column("told").to_pylist()]
        self._columns.update(*cells)
        return np.array([not unmet(self.conditions, one) for one in cells], bool)

    def _cells(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cells of a row; in place of a long text stands the condition's that it equals, or its hash."""
        return {
            name: self._texts.get(cell[LONG], f"{LONG} {cell[LONG]}") if isinstance(cell, dict) else cell
            for name, cell in told.items()
        }


def told_text(told: Mapping[str, Any]) -> str:
    """Return what a foreign JSON says as JSON for the index: numbers and short texts, and hashes of longer texts.

    The number of columns, their names and their cells are bounded; a list or an object is null.

    Example:
        >>> told_text({"similarity": 0.3, "exif": {"make": "x"}, "license": "cc0"})
        '{"similarity": 0.3, "exif": null, "license": "cc0"}'
    """
    names = [name for name in told if len(name) <= MAX_CELL][:MAX_COLUMNS]
    return json.dumps({name: _told_cell(told[name]) for name in names})


def _told_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell if len(cell) <= MAX_CELL else {LONG: _sha256(cell)}
    if isinstance(cell, int):
        return cell if cell.bit_length() <= MAX_BITS else None
    return cell if isinstance(cell, float) else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

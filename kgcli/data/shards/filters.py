"""Filters of shards' rows by the columns of their index, and by those of the data they come from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgcli.data.shards.scan import FAULT
from kgcli.data.where import check_columns, parse_condition, unmet
from kgcli.recipe import FilterConfig

WHERE = "data.sources: filters.where"


def kept_rows(table: Any, filters: FilterConfig, place: str) -> Any:
    """Return the rows of an index that pass; what is not known of a row, as the size of its image (0), passes.

    Args:
        table: a scanned one where there are conditions on columns
        place: the shard, for messages

    Raises: UsageError for a condition that cannot be read, or whose column the shard does not have.
    """
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
    if filters.where:
        keep &= _meets(table, filters.where, place) | (kinds == FAULT)
    return table.filter(keep)


def _meets(table: Any, where: tuple[str, ...], place: str) -> NDArray[np.bool_]:
    """Tell of each row if it meets the conditions on its columns; a column that it does not tell meets none."""
    conditions = [parse_condition(text, name=WHERE) for text in where]
    has_told = "told" in table.column_names  # not in an index of ours, which says nothing of where the rows came from
    cells = [json.loads(told) for told in table.column("told").to_pylist()] if has_told else [{}] * table.num_rows
    columns = {name for one in cells for name in one}
    if columns or not has_told:
        check_columns(conditions, columns, place, name=WHERE)
    return np.array([not unmet(conditions, one) for one in cells], bool)

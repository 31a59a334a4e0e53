"""Filters of shards' rows by the columns of their index."""

from __future__ import annotations

from typing import Any

import numpy as np

from kgcli.data.shards.scan import FAULT
from kgcli.recipe import FilterConfig


def kept_rows(table: Any, filters: FilterConfig) -> Any:
    """Return the rows of an index that pass; what is not known of a row, as the size of its image (0), passes."""
    if filters == FilterConfig():
        return table
    width, height, tokens = (table.column(name).to_numpy() for name in ("width", "height", "num_tokens"))
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    keep = (shorter == 0) | (shorter >= filters.min_side)
    if filters.max_aspect is not None:
        keep &= longer <= filters.max_aspect * shorter
    if filters.max_tokens is not None:
        keep &= tokens <= filters.max_tokens
    if filters.kinds:
        kinds = np.array(table.column("kind").to_pylist(), dtype=str)
        keep &= np.isin(kinds, filters.kinds) | (kinds == FAULT)
    if filters.without_flags:
        flags, refused = table.column("flags").to_pylist(), set(filters.without_flags)
        keep &= np.array([refused.isdisjoint(one or ()) for one in flags], bool)
    return table.filter(keep)

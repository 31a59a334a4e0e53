"""Agreement of the order of rows with the paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import kendalltau


@dataclass(frozen=True)
class Order:
    """Agreement of two rankings of the same rows."""

    tau: float | None  # Kendall's tau-b, 1 = the same order; None where all rows are equal in one of the rankings
    rows: tuple[str, ...]  # in both rankings, the paper's best first
    swapped: tuple[tuple[str, str], ...]  # pairs: the paper's better one first, which is the worse one here

    @property
    def num_pairs(self) -> int:
        """Number of pairs of rows."""
        return math.comb(len(self.rows), 2)


def compare_order(
    found: Mapping[str, float], published: Mapping[str, float | None], *, higher_is_better: bool
) -> Order | None:
    """Compare the order of rows found and published; None if fewer than two are in both. "Failed" (None) ranks last."""
    rows = [row for row in published if row in found]
    if len(rows) < 2:
        return None
    sign = 1 if higher_is_better else -1
    here = {row: sign * found[row] for row in rows}
    there = {row: _rank(published[row], sign) for row in rows}
    tau = float(kendalltau([here[row] for row in rows], [there[row] for row in rows]).statistic)
    rows.sort(key=lambda row: -there[row])
    swapped = tuple(
        (better, worse)
        for better, worse in itertools.combinations(rows, 2)
        if there[better] > there[worse] and here[better] < here[worse]
    )
    return Order(None if math.isnan(tau) else tau, tuple(rows), swapped)


def _rank(value: float | None, sign: int) -> float:
    # Finite: the difference of two infinities is NaN.
    return -1e9 if value is None else sign * value

"""A mean with its 95 % interval, over independent cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of a two-sided 95 % interval
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over `num` cases, and where the true one lies with 95 % confidence."""

    value: float
    low: float
    high: float
    num: int
    method: str  # "wilson" or "bootstrap"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values in [0, 1]: Wilson's interval where all are 0 or 1, else a bootstrap over the cases."""
    assert len(values), "a mean needs at least one case"
    mean = float(np.mean(values))
    proportion = set(values) <= {0.0, 1.0}
    low, high = wilson(int(sum(values)), len(values)) if proportion else bootstrap(values)
    return Estimate(mean, low, high, len(values), "wilson" if proportion else "bootstrap")


def wilson(successes: int, num: int) -> tuple[float, float]:
    """The score interval of a proportion. Source: Wilson (1927), Probable inference."""
    share, z2 = successes / num, Z * Z
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z * math.sqrt(share * (1 - share) / num + z2 / (4 * num * num)) / (1 + z2 / num)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The percentile interval of a mean under resampling of the cases; the same values give the same interval."""
    rng = np.random.default_rng(0)
    rows = np.asarray(values, float)[rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))]
    low, high = np.quantile(rows.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)

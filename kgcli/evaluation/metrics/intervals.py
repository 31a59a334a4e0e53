"""Means with 95 % intervals: over independent cases, and over images that come in clusters.

Images of one subject are correlated, so an interval over images is far too narrow; subjects are the clusters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit  # scipy.stats takes three times as long to import

from kgcli.errors import UsageError

CONFIDENCE = 0.95
TAIL = 0.025
Z = 1.959964  # of a two-sided 95 % interval
SEED = 0  # of the bootstrap: equal numbers, equal intervals
FEWEST_SUBJECTS = 3  # a t interval of two is 13 times as wide as their standard deviation, their bootstrap nothing
CASE_RESAMPLES = 2000
CLUSTER_RESAMPLES = 10_000
BLOCK = 1 << 22  # indices held at once


@dataclass(frozen=True)
class Estimate:
    """A mean over `num` independent cases with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    num: int
    method: str  # "wilson" or "bootstrap"


@dataclass(frozen=True)
class ClusterMean:
    """A mean over subjects; without intervals for fewer than FEWEST_SUBJECTS."""

    value: float
    num: int  # subjects
    low: float | None = None  # t distribution over the subjects' means
    high: float | None = None
    bootstrap_low: float | None = None  # subjects resampled, quantiles expanded
    bootstrap_high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values in [0, 1], with Wilson's interval if all are 0 or 1, else a bootstrap over cases."""
    assert len(values), "a mean needs at least one case"
    mean = float(np.mean(values))
    proportion = set(values) <= {0.0, 1.0}
    low, high = wilson(int(sum(values)), len(values)) if proportion else bootstrap(values)
    return Estimate(mean, low, high, len(values), "wilson" if proportion else "bootstrap")


def wilson(successes: int, num: int) -> tuple[float, float]:
    """Return the score interval of a proportion, which holds it; scipy's differs in the ninth digit, by its longer z.

    Source: Wilson (1927), Probable inference.
    """
    rate, z2 = successes / num, Z * Z
    centre = (rate + z2 / (2 * num)) / (1 + z2 / num)
    half = Z * math.sqrt(rate * (1 - rate) / num + z2 / (4 * num * num)) / (1 + z2 / num)
    # Rounding can leave a rate of 0 or 1 outside by the last bit.
    return min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the percentile interval of a mean under resampling of the cases; deterministic."""
    return percentiles(_resampled_means(np.asarray(values, float), CASE_RESAMPLES))


def percentiles(resampled: Sequence[float] | NDArray[np.float64], tail: float = TAIL) -> tuple[float, float]:
    """Return the central interval of resampled statistics."""
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def t_half(deviation: float, num: int) -> float:
    """Return half of the t interval of a mean of `num` values with this sample standard deviation."""
    return float(stdtrit(num - 1, (1 + CONFIDENCE) / 2) * deviation / math.sqrt(num))


def resamples(num: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield `count` rows of `num` indices drawn with replacement, in blocks; deterministic."""
    rng = np.random.default_rng(SEED)
    rows = max(BLOCK // num, 1)
    if rows >= count:
        yield _one_block(num, count)
        return
    for start in range(0, count, rows):
        yield rng.integers(num, size=(min(rows, count - start), num))


def subject_means(rows: Iterable[tuple[str, int, float]]) -> dict[str, float]:
    """Return the mean of each subject from rows of (subject, prompt, value): over images, then over prompts.

    Prompts have equal weights, however many images they have.
    """
    prompts: dict[str, dict[int, list[float]]] = {}
    for subject, prompt, value in rows:
        prompts.setdefault(subject, {}).setdefault(prompt, []).append(value)
    return {
        subject: math.fsum(math.fsum(images) / len(images) for images in of.values()) / len(of)
        for subject, of in prompts.items()
    }


def cluster_mean(means: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> ClusterMean:
    """Return the mean over subjects, from one value per subject.

    Intervals are cut to `bounds`, the range of the measure: the truth cannot lie outside, so they cover it as often.
    """
    assert len(means), "a mean needs at least one subject"
    values, num = np.asarray(means, float), len(means)
    value = math.fsum(means) / num
    if num < FEWEST_SUBJECTS:
        return ClusterMean(value, num)
    half = t_half(values.std(ddof=1), num)
    low, high = percentiles(_resampled_means(values, CLUSTER_RESAMPLES), expanded_tail(num))
    ends = (value - half, value + half, low, high)
    return ClusterMean(value, num, *(min(max(end, bounds[0]), bounds[1]) for end in ends))


def expanded_tail(num: int) -> float:
    """Return the tail quantile of the bootstrap interval of `num` values: slightly below 2.5 %.

    Resampled means spread like a variance divided by n instead of n - 1, and ignore the t distribution; with 30
    subjects plain quantiles cover the truth in 93 to 94 % of cases, these in 94 to 95 %.

    Source: Hesterberg (2015), What Teachers Should Know About the Bootstrap, "expanded percentile interval".
    """
    t = stdtrit(num - 1, (1 - CONFIDENCE) / 2)
    return float(ndtr(t * math.sqrt(num / (num - 1))))


def paired(
    a: Mapping[str, float], b: Mapping[str, float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> ClusterMean:
    """Return the mean of `a - b` over subjects, from their means in both runs; `bounds` are the measure's range.

    Raises: UsageError.
    """
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise UsageError(
            f"the subjects of the runs differ ({', '.join(only[:3])} in one only); they cannot be compared"
        )
    width = bounds[1] - bounds[0]
    return cluster_mean([a[subject] - b[subject] for subject in sorted(a)], (-width, width))


@functools.lru_cache(maxsize=4)
def _one_block(num: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).integers(num, size=(count, num))


def _resampled_means(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.concatenate([values[rows].mean(axis=1) for rows in resamples(len(values), count)])

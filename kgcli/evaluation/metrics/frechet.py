"""Frechet distance of two sets of feature vectors as Gaussians: FID, and FD with any features. float64 throughout.

Shape letters: N vectors, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kgcli.evaluation.metrics.intervals import percentiles, resamples

Array = NDArray[np.float64]
NUM_POINTS = 15  # sizes the extrapolation is fitted to
SMALLEST = 5000  # vectors of the smallest size, if there are twice as many
BLOCK = 4096  # vectors at a time
NUM_RESAMPLES = 400


class Moments:
    """Mean and covariance of vectors, accumulated in blocks."""

    def __init__(self, num_features: int) -> None:
        self.num = 0
        self.sum_D = np.zeros(num_features)
        self.products_DD = np.zeros((num_features, num_features))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Return the moments of vectors (N, D)."""
        moments = cls(features.shape[1])
        for start in range(0, len(features), BLOCK):
            moments.add(features[start : start + BLOCK])
        return moments

    def add(self, features: NDArray[np.floating]) -> None:
        """Add a block of vectors (N, D)."""
        block_ND = np.asarray(features, np.float64)
        self.num += len(block_ND)
        self.sum_D += block_ND.sum(axis=0)
        self.products_DD += block_ND.T @ block_ND

    def mean(self) -> Array:
        """Return the mean (D,)."""
        return self.sum_D / self.num

    def covariance(self) -> Array:
        """Return the unbiased covariance (D, D) of at least two vectors."""
        assert self.num > 1, "a covariance needs two vectors"
        mean_D = self.mean()
        return (self.products_DD - self.num * np.outer(mean_D, mean_D)) / (self.num - 1)


class Reference:
    """The real set, with the square root of its covariance computed once."""

    def __init__(self, moments: Moments) -> None:
        self.mean_D = moments.mean()
        self.covariance_DD = moments.covariance()
        values, vectors = np.linalg.eigh(self.covariance_DD)
        self.root_DD = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def distance(self, moments: Moments) -> float:
        """Return the Frechet distance to another set.

        The trace of sqrt(A B) is the sum of the roots of the eigenvalues of the symmetric sqrt(A) B sqrt(A);
        negative ones are rounding errors, clipped to 0.
        """
        other_DD = moments.covariance()
        between_DD = self.root_DD @ other_DD @ self.root_DD
        roots = np.sqrt(np.clip(np.linalg.eigvalsh((between_DD + between_DD.T) / 2), 0, None))
        apart = float(((self.mean_D - moments.mean()) ** 2).sum())
        return apart + float(np.trace(self.covariance_DD) + np.trace(other_DD)) - 2 * float(roots.sum())


@dataclass(frozen=True)
class Extrapolated:
    """The distance in the limit of infinitely many generated vectors, and the fitted line."""

    value: float
    slope: float  # the bias at N vectors is slope / N
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolate(
    reference: Reference, features: NDArray[np.floating], *, num_points: int = NUM_POINTS, seed: int = 0
) -> Extrapolated:
    """Extrapolate the distance to infinite N: a line in 1/N through distances of random subsets.

    Meaningless for sets no larger than the feature dimension: see `may_extrapolate`.

    Source: Effectively Unbiased FID and Inception Score (arXiv:1911.07023).
    """
    num = len(features)
    smallest = max(_smallest(num), 2)
    sizes = sorted({int(size) for size in np.linspace(smallest, num, num_points)})
    assert len(sizes) > 1, f"{num} vectors are too few to extrapolate from"
    rng = np.random.default_rng(seed)
    distances = [reference.distance(Moments.of(features[np.sort(rng.permutation(num)[:size])])) for size in sizes]
    slope, value = np.polyfit(1 / np.array(sizes, float), distances, 1)
    return Extrapolated(float(value), float(slope), tuple(sizes), tuple(distances))


def may_extrapolate(num: int, width: int) -> bool:
    """Return True if even the smallest subset has more vectors than features.

    Otherwise its covariance is rank-deficient and the bias far from linear in 1/N.
    """
    return _smallest(num) > width


def _smallest(num: int) -> int:
    return min(SMALLEST, num // 2)


def distance_interval(reference: Reference, rows: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a Frechet distance at this number of images; deterministic.

    Resampled sets repeat images, so their distances are higher than the set's own; that shift is subtracted. The bias
    of a distance at this number of images is kept: it is the same for all methods.
    """
    value = reference.distance(Moments.of(rows))
    chosen = chain.from_iterable(resamples(len(rows), NUM_RESAMPLES))
    resampled = [reference.distance(Moments.of(rows[places])) for places in chosen]
    low, high = percentiles(np.asarray(resampled) - (np.mean(resampled) - value))
    return max(low, 0.0), high

"""Precision, recall, density and coverage: the overlap of two sets of feature vectors.

Shape letters: N real, M generated, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
NUM_NEIGHBOURS = 5
BLOCK = 1024  # rows of a distance matrix held at once


@dataclass(frozen=True)
class Manifolds:
    """Four fractions; only density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Array, fake: Array, *, num_neighbours: int = NUM_NEIGHBOURS) -> Manifolds:
    """Measure how much of each set lies in the nearest-neighbour balls around the other's vectors.

    All four use five neighbours, as in the second source; the first uses three.

    Source: Improved Precision and Recall (arXiv:1904.06991); Reliable Fidelity and Diversity Metrics
    (arXiv:2002.09797).
    """
    assert min(len(real), len(fake)) > num_neighbours, "each set needs more vectors than neighbours"
    real_radii_N = _radii(real, num_neighbours)
    fake_radii_M = _radii(fake, num_neighbours)
    inside_M = np.zeros(len(fake), np.int64)  # number of real balls that contain each generated vector
    recalled, covered = 0, 0
    for start, distances_NM in _distances(real, fake):
        radii_N1 = real_radii_N[start : start + len(distances_NM), None]
        inside_M += (distances_NM < radii_N1).sum(axis=0)
        recalled += int((distances_NM < fake_radii_M).any(axis=1).sum())
        covered += int((distances_NM.min(axis=1) < radii_N1[:, 0]).sum())
    return Manifolds(
        precision=float((inside_M > 0).mean()),
        recall=recalled / len(real),
        density=float(inside_M.mean() / num_neighbours),
        coverage=covered / len(real),
    )


def _radii(features: Array, num_neighbours: int) -> NDArray[np.float64]:
    """Return the squared distance of each vector to its k-th nearest neighbour."""
    radii = [
        np.partition(block, num_neighbours, axis=1)[:, num_neighbours] for _, block in _distances(features, features)
    ]
    return np.concatenate(radii)


def _distances(a: Array, b: Array) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield squared distances of all pairs in blocks of rows, with the index of the first row.

    Products are centred on the mean of `b` to reduce cancellation.
    """
    centre_D = np.asarray(b, np.float64).mean(axis=0)
    b_MD = b - centre_D
    squares_M = (b_MD**2).sum(axis=1)
    for start in range(0, len(a), BLOCK):
        a_ND = a[start : start + BLOCK] - centre_D
        distances_NM = (a_ND**2).sum(axis=1)[:, None] + squares_M - 2 * a_ND @ b_MD.T
        if a is b:  # a vector is its own nearest, despite rounding
            rows = np.arange(len(a_ND))
            distances_NM[rows, start + rows] = 0.0
        yield start, np.clip(distances_NM, 0, None)

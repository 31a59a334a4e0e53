"""Precision, recall, density and coverage: how far two sets of feature vectors lie within each other.

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
    """Four shares; density alone may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Array, fake: Array, *, num_neighbours: int = NUM_NEIGHBOURS) -> Manifolds:
    """How much of each set lies in the balls around the other's vectors that reach to their nearest neighbours.

    Five neighbours for all four, as the second source has it; the first takes three.

    Source: Improved Precision and Recall (arXiv:1904.06991); Reliable Fidelity and Diversity Metrics
    (arXiv:2002.09797).
    """
    assert min(len(real), len(fake)) > num_neighbours, "each set needs more vectors than neighbours"
    real_radii_N = _radii(real, num_neighbours)
    fake_radii_M = _radii(fake, num_neighbours)
    inside_M = np.zeros(len(fake), np.int64)  # real balls that hold each generated vector
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
    """The squared distance of each vector to its k-th nearest other."""
    radii = [
        np.partition(block, num_neighbours, axis=1)[:, num_neighbours] for _, block in _distances(features, features)
    ]
    return np.concatenate(radii)


def _distances(a: Array, b: Array) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Squared distances of all pairs, some rows at a time, with the place of the first row.

    The products are taken about the mean of `b`, where they cancel least.
    """
    centre_D = np.asarray(b, np.float64).mean(axis=0)
    b_MD = b - centre_D
    squares_M = (b_MD**2).sum(axis=1)
    for start in range(0, len(a), BLOCK):
        a_ND = a[start : start + BLOCK] - centre_D
        distances_NM = (a_ND**2).sum(axis=1)[:, None] + squares_M - 2 * a_ND @ b_MD.T
        if a is b:  # a vector is its own nearest, whatever rounding says
            rows = np.arange(len(a_ND))
            distances_NM[rows, start + rows] = 0.0
        yield start, np.clip(distances_NM, 0, None)

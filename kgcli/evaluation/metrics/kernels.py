"""Distances of two sets of feature vectors under a kernel: KID and CMMD. float64 throughout.

Shape letters: N and M vectors, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SIGMA = 10.0  # of CMMD's Gaussian kernel. Source: Rethinking FID (arXiv:2401.09603)
SCALE = 1000.0  # of CMMD, for readability
BLOCK = 2048  # rows of a kernel matrix held at once


def kid(
    real: Array, fake: Array, *, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Return the mean and standard deviation of the Kernel Inception Distance over random subsets.

    Source: Demystifying MMD GANs (arXiv:1801.01401).
    """
    size = min(subset_size, len(real), len(fake))
    assert size > 1, "KID needs two vectors of each set"
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        chosen_real = real[rng.choice(len(real), size, replace=False)]
        chosen_fake = fake[rng.choice(len(fake), size, replace=False)]
        values.append(polynomial_mmd(chosen_real, chosen_fake))
    return float(np.mean(values)), float(np.std(values))


def polynomial_mmd(real: Array, fake: Array) -> float:
    """Return the unbiased squared MMD of two sets of equal size under the kernel (x . y / D + 1) ** 3."""
    size = len(real)
    assert len(fake) == size > 1
    within = sum(_polynomial(one, one, without_diagonal=True) for one in (real, fake)) / (size * (size - 1))
    return within - 2 * _polynomial(real, fake) / size**2


def cmmd(real: Array, fake: Array, *, sigma: float = SIGMA, scale: float = SCALE) -> float:
    """Return the CLIP-MMD of unit-length embeddings: 1000 times the biased squared MMD under a Gaussian kernel.

    Source: Rethinking FID: Towards a Better Evaluation Metric for Image Generation (arXiv:2401.09603).
    """
    gamma = 1 / (2 * sigma**2)
    mean = (
        _gaussian(real, real, gamma) / len(real) ** 2
        + _gaussian(fake, fake, gamma) / len(fake) ** 2
        - 2 * _gaussian(real, fake, gamma) / (len(real) * len(fake))
    )
    return scale * mean


def _polynomial(a: Array, b: Array, *, without_diagonal: bool = False) -> float:
    """Sum the polynomial kernel over all pairs."""
    a_ND, b_MD = np.asarray(a, np.float64), np.asarray(b, np.float64)
    kernel_NM = (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3
    return float(kernel_NM.sum() - (np.trace(kernel_NM) if without_diagonal else 0.0))


def _gaussian(a: Array, b: Array, gamma: float) -> float:
    """Sum the Gaussian kernel over all pairs, in blocks of rows."""
    b_MD = np.asarray(b, np.float64)
    squares_M = (b_MD**2).sum(axis=1)
    total = 0.0
    for start in range(0, len(a), BLOCK):
        a_ND = np.asarray(a[start : start + BLOCK], np.float64)
        distances_NM = (a_ND**2).sum(axis=1)[:, None] + squares_M - 2 * a_ND @ b_MD.T
        total += float(np.exp(-gamma * np.clip(distances_NM, 0, None)).sum())
    return total

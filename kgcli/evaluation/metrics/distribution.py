"""Figures of a whole set of pictures against a real one: FID, FID at infinity, KID, precision, recall. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kgcli.evaluation.extractors.base import PictureExtractor
from kgcli.evaluation.metrics.frechet import NUM_POINTS, SMALLEST, Moments, Reference, extrapolate, may_extrapolate
from kgcli.evaluation.metrics.kernels import NUM_SUBSETS, SIGMA, SUBSET_SIZE, kid
from kgcli.evaluation.metrics.manifolds import NUM_NEIGHBOURS, manifolds
from kgcli.evaluation.run.real_set import SAMPLE, RealSet, chosen
from kgcli.evaluation.scores import Figure, Measure

FEWEST = 1000  # pictures of each kind below which neighbours are so far apart that nearly all is near


# What defines the numbers beside the vectors, for the protocol.
DEFINITIONS = {
    "kid": {"kernel": "(x . y / D + 1) ** 3", "subsets": NUM_SUBSETS, "subset_size": SUBSET_SIZE, "sample": SAMPLE},
    "manifolds": {"neighbours": NUM_NEIGHBOURS, "sample": SAMPLE, "fewest": FEWEST},
    "infinity": {"points": NUM_POINTS, "smallest": SMALLEST},
    "cmmd": {"sigma": SIGMA, "sample": SAMPLE},
}


@dataclass(frozen=True)
class DistributionExtractor:
    """A preset: how real and how generated pictures become vectors."""

    name: str  # kosmosg, clean, ...
    real: PictureExtractor
    fake: PictureExtractor
    frechet: str = "FID"  # what its distances are called: the I is for Inception
    kernel: str = "KID"


def measures_of(preset: DistributionExtractor, *, primary: bool = False) -> tuple[Measure, ...]:
    """The measures of one preset."""
    name, frechet, kernel = preset.name, preset.frechet.lower(), preset.kernel.lower()
    lower = [
        (frechet, preset.frechet),
        (f"{frechet}_infinity", f"{preset.frechet} at infinitely many pictures"),
        (kernel, preset.kernel),
        (f"{kernel}_sd", f"{preset.kernel}, standard deviation over subsets"),
    ]
    higher = [(key, f"{key} of {NUM_NEIGHBOURS} neighbours") for key in ("precision", "recall", "density", "coverage")]
    return (
        *(
            Measure(
                name=f"{key}_{name}",
                title=f"{title} ({name})",
                higher_is_better=False,
                primary=primary and not key.endswith("_sd"),
            )
            for key, title in lower
        ),
        *(Measure(name=f"{key}_{name}", title=f"{title} ({name})") for key, title in higher),
    )


def distribution_figures(preset: DistributionExtractor, real: RealSet, fake: NDArray[np.float32]) -> tuple[Figure, ...]:
    """The figures of one preset from the vectors (N, D) of at least two generated pictures."""
    reference = Reference(real.moments)
    mean, sd = kid(real.sample, fake)
    frechet, kernel = preset.frechet.lower(), preset.kernel.lower()
    values = {frechet: reference.distance(Moments.of(fake)), kernel: mean, f"{kernel}_sd": sd}
    if may_extrapolate(*fake.shape):
        values[f"{frechet}_infinity"] = extrapolate(reference, fake).value
    if min(len(fake), len(real.sample)) >= FEWEST:
        found = manifolds(real.sample, chosen(fake))
        values |= {key: getattr(found, key) for key in ("precision", "recall", "density", "coverage")}
    return tuple(
        Figure(measure=one.name, value=values[key], num_pictures=len(fake))
        for one in measures_of(preset)
        if (key := one.name.removesuffix(f"_{preset.name}")) in values
    )

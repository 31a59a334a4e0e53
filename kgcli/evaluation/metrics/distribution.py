"""Scores of a set of images against a real set: FID, FID-infinity, KID, precision, recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kgcli.evaluation.extractors.base import ImageExtractor
from kgcli.evaluation.metrics.frechet import NUM_POINTS, SMALLEST, Moments, Reference, extrapolate, may_extrapolate
from kgcli.evaluation.metrics.kernels import NUM_SUBSETS, SIGMA, SUBSET_SIZE, kid
from kgcli.evaluation.metrics.manifolds import NUM_NEIGHBOURS, manifolds
from kgcli.evaluation.run.real_set import SAMPLE, RealSet, chosen
from kgcli.evaluation.scores import Figure, Measure

FEWEST = 1000  # images per set, below which neighbours are so far apart that nearly all count as near


# Parameters of the scores, for the protocol.
DEFINITIONS = {
    "kid": {"kernel": "(x . y / D + 1) ** 3", "subsets": NUM_SUBSETS, "subset_size": SUBSET_SIZE, "sample": SAMPLE},
    "manifolds": {"neighbours": NUM_NEIGHBOURS, "sample": SAMPLE, "fewest": FEWEST},
    "infinity": {"points": NUM_POINTS, "smallest": SMALLEST},
    "cmmd": {"sigma": SIGMA, "sample": SAMPLE},
}


@dataclass(frozen=True)
class DistributionExtractor:
    """A preset: the extractors of real and of generated images."""

    name: str  # kosmosg, clean, ...
    real: ImageExtractor
    fake: ImageExtractor
    frechet: str = "FID"  # name of the distance; FID is for Inception features
    kernel: str = "KID"


def measures_of(preset: DistributionExtractor, *, primary: bool = False) -> tuple[Measure, ...]:
    """Return the measures of one preset."""
    name, frechet, kernel = preset.name, preset.frechet.lower(), preset.kernel.lower()
    lower = [
        (frechet, preset.frechet),
        (f"{frechet}_infinity", f"{preset.frechet}-infinity"),
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
    """Return the scores of one preset from the features (N, D) of at least two generated images."""
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

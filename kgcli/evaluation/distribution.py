"""Figures of a whole set of pictures against a real one: FID, FID at infinity, KID, precision, recall. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kgcli.evaluation.extractors import PictureExtractor
from kgcli.evaluation.frechet import Moments, Reference, extrapolate
from kgcli.evaluation.kernels import kid
from kgcli.evaluation.manifolds import NUM_NEIGHBOURS, manifolds
from kgcli.evaluation.realset import RealSet, chosen
from kgcli.evaluation.scores import Figure, Measure

FEWEST = 20  # pictures below which the extrapolation and the neighbours say nothing


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
    higher = [("precision", "precision"), ("recall", "recall"), ("density", "density"), ("coverage", "coverage")]
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
    if len(fake) >= FEWEST:
        values[f"{frechet}_infinity"] = extrapolate(reference, fake).value
    if len(fake) >= FEWEST and len(real.sample) > NUM_NEIGHBOURS:
        found = manifolds(real.sample, chosen(fake))
        values |= {key: getattr(found, key) for key in ("precision", "recall", "density", "coverage")}
    return tuple(
        Figure(measure=one.name, value=values[key], num_pictures=len(fake))
        for one in measures_of(preset)
        if (key := one.name.removesuffix(f"_{preset.name}")) in values
    )

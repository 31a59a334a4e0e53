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


def measures_of(name: str, *, primary: bool = False) -> tuple[Measure, ...]:
    """The measures of one preset."""
    lower = [
        ("fid", "FID"),
        ("fid_infinity", "FID at infinitely many pictures"),
        ("kid", "KID"),
        ("kid_sd", "KID, standard deviation over subsets"),
    ]
    higher = [("precision", "precision"), ("recall", "recall"), ("density", "density"), ("coverage", "coverage")]
    return (
        *(
            Measure(
                name=f"{key}_{name}",
                title=f"{title} ({name})",
                higher_is_better=False,
                primary=primary and key in ("fid", "fid_infinity", "kid"),
            )
            for key, title in lower
        ),
        *(Measure(name=f"{key}_{name}", title=f"{title} ({name})") for key, title in higher),
    )


def distribution_figures(name: str, real: RealSet, fake: NDArray[np.float32]) -> tuple[Figure, ...]:
    """The figures of one preset from the vectors (N, D) of at least two generated pictures."""
    reference = Reference(real.moments)
    mean, sd = kid(real.sample, fake)
    values = {"fid": reference.distance(Moments.of(fake)), "kid": mean, "kid_sd": sd}
    if len(fake) >= FEWEST:
        values["fid_infinity"] = extrapolate(reference, fake).value
    if len(fake) >= FEWEST and len(real.sample) > NUM_NEIGHBOURS:
        found = manifolds(real.sample, chosen(fake))
        values |= {key: getattr(found, key) for key in ("precision", "recall", "density", "coverage")}
    return tuple(
        Figure(measure=one.name, value=values[key], num_pictures=len(fake))
        for one in measures_of(name)
        if (key := one.name.removesuffix(f"_{name}")) in values
    )

"""The parts of a sample of the nano world: its two random streams, its truth, and what makes its target image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from kgcli.data.sample import Sample, Target
from kgcli.world.rendering import crop, render
from kgcli.world.spec import Spec, Subject, draw_spec, place
from kgcli.world.tables import BASE_ONLY_NOUNS, SEEN_NOUNS

BASE_NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]


@dataclass(frozen=True)
class Truth:
    """Ground truth of a sample: the spec of its image, the spec before an edit, and the index of the subject that a
    reference shows."""

    spec: Spec
    before: Spec | None = None
    subject: int = 0


@dataclass(frozen=True)
class Randomness:
    """The two random streams of one sample, its seed and row, and the size of its images in pixels."""

    seed: int
    shown: np.random.Generator
    told: np.random.Generator
    row: int  # of the pool; the index where there is no pool
    size: int
    drop_entity_text: float  # fractions of compositional samples
    keep_background: float


def with_target(spec: Spec, sample: Sample, *, before: Spec | None = None, subject: int = 0) -> Sample:
    """Return the sample with `spec` as its target and truth."""
    return replace(sample, target=partial(_render, spec), truth=Truth(spec, before, subject))


def _render(spec: Spec, size: int) -> Target:
    rendered = render(spec, size)
    return Target(rendered.image, rendered.masks)


def reference(subject: Subject, rng: np.random.Generator, size: int, *, keep_background: bool) -> Image.Image:
    """Return a new image of an instance, as a user would give it: another scene and pose, cropped."""
    bare = Subject(subject.noun, subject.identity, None, subject.recoloured)
    spec = draw_spec(rng, [subject.noun], styled=0.0)
    spec = Spec(place([bare], rng), spec.scene, "photo", spec.variant)
    return crop(render(spec, size), 0, size, keep_background=keep_background)

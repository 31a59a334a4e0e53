"""An image as data, and random ones. All ground truth of an image comes from its `Spec`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kgcli.world.looks import Look, look_of
from kgcli.world.tables import ACCESSORIES, FIRST_NEW_IDENTITY, SCENES, STYLES, is_held_out_combination

NUM_VARIANTS = 192  # numbers that a variant is drawn from; a scene has `scenes.NUM_VIEWS`, each shown by as many


@dataclass(frozen=True)
class Subject:
    """One instance: a noun and an integer that determines its appearance."""

    noun: str
    identity: int
    accessory: str | None = None
    recoloured: str | None = None  # a colour word that replaces the body colour: the result of an edit

    @property
    def look(self) -> Look:
        """Return its colours, pattern and proportions: a function of `noun`, `identity` and `recoloured` alone."""
        return look_of(self.noun, self.identity, self.recoloured)


@dataclass(frozen=True)
class Placed:
    """A subject at its place: centre and side of its box in units of the image, tilt in degrees."""

    subject: Subject
    x: float
    y: float
    side: float
    tilt: float
    flip: bool


@dataclass(frozen=True)
class Spec:
    """A whole image. `scene` None (only with a style that has a scene of its own) leaves the scene to the style."""

    subjects: tuple[Placed, ...]
    scene: str | None
    style: str = "photo"
    variant: int = 0


def draw_subject(rng: np.random.Generator, nouns: list[str], *, new: bool = False, accessory: float = 0.15) -> Subject:
    """Return a random instance of one of `nouns`; `new` draws from the identities no training stage sees."""
    low = FIRST_NEW_IDENTITY if new else 0
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < accessory else None
    return Subject(str(rng.choice(nouns)), int(rng.integers(low, low + FIRST_NEW_IDENTITY)), worn)


def place(subjects: list[Subject], rng: np.random.Generator) -> tuple[Placed, ...]:
    """Put one subject in the middle or two or three side by side, the first on the left."""
    centres = {1: [0.5], 2: [0.26, 0.74], 3: [0.18, 0.5, 0.82]}[len(subjects)]
    low, high = {1: (0.70, 0.86), 2: (0.47, 0.54), 3: (0.33, 0.38)}[len(subjects)]
    return tuple(
        Placed(
            subject,
            x=centre + float(rng.uniform(-0.05, 0.05)) / len(subjects),
            y=float(rng.uniform(0.5, 0.57)) + (0.04 if subject.accessory in ("hat", "crown") else 0.0),
            side=float(rng.uniform(low, high)),
            tilt=float(rng.uniform(-5, 5)),
            flip=bool(rng.random() < 0.5),
        )
        for subject, centre in zip(subjects, centres, strict=True)
    )


def draw_spec(
    rng: np.random.Generator,
    nouns: list[str],
    *,
    num_subjects: int = 1,
    new: bool = False,
    accessory: float = 0.15,
    styled: float = 0.3,
    held_out: bool = False,
) -> Spec:
    """Return a random spec. Held-out combinations are excluded, or with `held_out` the only ones drawn.

    Args:
        styled: probability of a style other than "photo"
    """
    while True:
        subjects = [draw_subject(rng, nouns, new=new, accessory=accessory) for _ in range(num_subjects)]
        style = str(rng.choice(list(STYLES)[1:])) if rng.random() < styled else "photo"
        scene: str | None = str(rng.choice(list(SCENES)))
        if style == "minecraft" and rng.random() < 0.4:
            scene = None
        spec = Spec(place(subjects, rng), scene, style, int(rng.integers(NUM_VARIANTS)))
        if is_held_out(spec) == held_out:
            return spec


def is_held_out(spec: Spec) -> bool:
    """Return True if a subject is in a combination of noun, scene and style that no stage is shown."""
    return any(is_held_out_combination(p.subject.noun, spec.scene or "studio", spec.style) for p in spec.subjects)

"""What the recognisers of the nano world find in images whose right contents are known, as numbers in [0, 1].

Whose image it is, is asked by choice: a gallery holds the instances to choose from, the right one first, and the
recogniser points at the one most like the image. 20 candidates are the right one, 10 of the same colour word and 9 of
any colour. After a change of colour all have the new colour, so that it cannot tell them apart.

Nothing here imports torch before networks are asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kgcli.weights.shipped import PACKAGE
from kgcli.world.spec import Spec, Subject, crop, place, render
from kgcli.world.tables import FIRST_NEW_IDENTITY

if TYPE_CHECKING:
    from kgcli.model.nano_recognisers import Judges

SIZE = 64  # pixels
SHIPPED = PACKAGE / "nano" / "judges"
NUM_SAME_COLOUR = 10  # of the 19 wrong candidates
NUM_ANY_COLOUR = 9

Rng = np.random.Generator
Gallery = tuple[Subject, ...]


@dataclass(frozen=True)
class Seen:
    """What the recognisers say of one image."""

    spec: Spec  # what it should show
    wanted: Mapping[str, str]  # the right choice of every head that applies
    heads: Mapping[str, NDArray[np.float32]]  # probabilities of every choice
    choices: Mapping[str, Sequence[str]]  # of every head
    nouns: tuple[str, ...]  # of each subject in it
    picked: Mapping[str, Sequence[int]]  # by gallery: the candidate most like each subject

    def says(self, head: str) -> float:
        """Return 1 where the head's first choice is the right one."""
        return float(self.choices[head][int(self.heads[head].argmax())] == self.wanted[head])

    @property
    def noun_probability(self) -> float:
        """Of the right noun."""
        return float(self.heads["noun"][list(self.choices["noun"]).index(self.wanted["noun"])])

    @property
    def has_nouns(self) -> float:
        """1 where every subject is of the right noun."""
        return float(list(self.nouns) == [placed.subject.noun for placed in self.spec.subjects])


class Recognition:
    """The recognisers, asked about images of one list of specs; portraits of candidates are embedded once."""

    def __init__(self, judges: Judges, specs: Sequence[Spec], galleries: Sequence[Mapping[str, Gallery]]) -> None:
        self.judges = judges
        self.specs = specs
        known: dict[Gallery, NDArray[np.float32]] = {}
        for gallery in (one for of in galleries for one in of.values()):
            if gallery not in known:
                known[gallery] = judges.embed([portrait(subject) for subject in gallery])
        self.galleries = [{name: known[gallery] for name, gallery in of.items()} for of in galleries]

    def __call__(self, images: Sequence[Image.Image]) -> list[Seen]:
        """Look at one image for each spec."""
        from kgcli.model.nano_recognisers import HEADS, around, labels

        fitted = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
        said = self.judges.classify(fitted)
        rows = []
        for row, (spec, image) in enumerate(zip(self.specs, fitted, strict=True)):
            num, heads = len(spec.subjects), {name: values[row] for name, values in said.items()}
            parts = [around(image, index, num) for index in range(num)]
            nouns = self.judges.classify(parts)["noun"] if num > 1 else heads["noun"][None]
            shown = tuple(HEADS["noun"][int(place)] for place in nouns.argmax(axis=-1))
            rows.append(Seen(spec, labels(spec), heads, HEADS, shown, self._pick(row, parts)))
        return rows

    def _pick(self, row: int, parts: Sequence[Image.Image]) -> dict[str, list[int]]:
        """For each gallery, the candidate most like the subject of each part; 0 is the right one for the first."""
        if not self.galleries[row]:
            return {}
        seen = self.judges.embed(parts)
        return {name: (seen @ known.T).argmax(axis=1).tolist() for name, known in self.galleries[row].items()}


def portrait(subject: Subject) -> Image.Image:
    """The image by which a candidate is known: alone on white, without accessory; a function of the instance."""
    rng = np.random.default_rng([6, subject.identity])
    bare = dataclasses.replace(subject, accessory=None)
    return crop(render(Spec(place([bare], rng), "studio"), SIZE), 0, SIZE, keep_background=False)


def choose_from(subject: Subject, rng: Rng, nouns: list[str]) -> Gallery:
    """An instance and the 19 it may be taken for."""
    if subject.recoloured:
        others = [draw_other(rng, nouns) for _ in range(NUM_SAME_COLOUR + NUM_ANY_COLOUR)]
        others = [dataclasses.replace(other, recoloured=subject.recoloured) for other in others]
        return (subject, *others)
    colour = subject.look.colour_name
    same = [draw_other(rng, nouns, colour) for _ in range(NUM_SAME_COLOUR)]
    return (subject, *same, *(draw_other(rng, nouns) for _ in range(NUM_ANY_COLOUR)))


def draw_other(rng: Rng, nouns: list[str], colour: str | None = None) -> Subject:
    """A random instance that no stage has seen, of one of these nouns, and of a colour word where one is given."""
    while True:
        identity = FIRST_NEW_IDENTITY + int(rng.integers(FIRST_NEW_IDENTITY))
        subject = Subject(str(rng.choice(nouns)), identity)
        if colour in (None, subject.look.colour_name):
            return subject


def other_subject(spec: Spec, rng: Rng, nouns: Sequence[str]) -> Spec:
    """The same image of somebody else: other nouns and other identities, changed as asked."""
    swapped = []
    for placed in spec.subjects:
        other = draw_other(rng, [noun for noun in nouns if noun != placed.subject.noun])
        subject = dataclasses.replace(placed.subject, noun=other.noun, identity=other.identity)
        swapped.append(dataclasses.replace(placed, subject=subject))
    return dataclasses.replace(spec, subjects=tuple(swapped))

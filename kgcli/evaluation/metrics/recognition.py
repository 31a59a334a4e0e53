"""Recognition of images of the nano world whose true contents are known, as scores in [0, 1].

Identity is scored by choice: a gallery holds candidate instances, the right one first, and the recogniser picks the
one most similar to the image. The 20 candidates are the right one, 10 of the same colour word and 9 of any colour.
After a change of colour all have the new colour, which then does not help to choose.

torch is imported only when networks run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kgcli.world.looks import colours_of
from kgcli.world.rendering import crop, render, stands_out
from kgcli.world.spec import Spec, Subject, place
from kgcli.world.tables import FIRST_NEW_IDENTITY, SIZE
from kgcli.world.view import view

if TYPE_CHECKING:
    from kgcli.model.nano_recognisers import Recognisers

NUM_SAME_COLOUR = 10  # of the 19 wrong candidates
NUM_ANY_COLOUR = 9

Rng = np.random.Generator
Gallery = tuple[Subject, ...]


@dataclass(frozen=True)
class Prediction:
    """The recognisers' output for one image."""

    spec: Spec  # true contents
    wanted: Mapping[str, str]  # right class of every head that applies
    heads: Mapping[str, NDArray[np.float32]]  # class probabilities of every head
    choices: Mapping[str, Sequence[str]]  # class names of every head
    nouns: tuple[str, ...]  # recognised noun of each subject
    picked: Mapping[str, Sequence[int]]  # by gallery: the candidate most similar to each subject

    def correct(self, head: str) -> float:
        """Return 1 if the head's top class is right, else 0."""
        return float(self.choices[head][int(self.heads[head].argmax())] == self.wanted[head])

    @property
    def noun_probability(self) -> float:
        """Probability of the right noun."""
        return float(self.heads["noun"][list(self.choices["noun"]).index(self.wanted["noun"])])

    @property
    def has_nouns(self) -> float:
        """1 if every subject's noun is right, else 0."""
        return float(list(self.nouns) == [placed.subject.noun for placed in self.spec.subjects])


class Recognition:
    """Recognition of images of one list of specs; portraits of candidates are embedded once.

    Images of another size are resized to the world's before their subjects are cut out. The recognisers see `view` of
    all.
    """

    def __init__(
        self, recognisers: Recognisers, specs: Sequence[Spec], galleries: Sequence[Mapping[str, Gallery]]
    ) -> None:
        self.recognisers = recognisers
        self.specs = specs
        known: dict[Gallery, NDArray[np.float32]] = {}
        for gallery in (one for of in galleries for one in of.values()):
            if gallery not in known:
                known[gallery] = recognisers.embed([view(portrait(subject)) for subject in gallery])
        self.galleries = [{name: known[gallery] for name, gallery in of.items()} for of in galleries]

    def __call__(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """Recognise one image per spec."""
        from kgcli.model.nano_recognisers import HEADS, around, labels

        fitted = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
        predicted = self.recognisers.classify([view(image) for image in fitted])
        rows = []
        for row, (spec, image) in enumerate(zip(self.specs, fitted, strict=True)):
            num, heads = len(spec.subjects), {name: values[row] for name, values in predicted.items()}
            parts = [view(around(image, index, num)) for index in range(num)]
            nouns = self.recognisers.classify(parts)["noun"] if num > 1 else heads["noun"][None]
            shown = tuple(HEADS["noun"][int(place)] for place in nouns.argmax(axis=-1))
            rows.append(Prediction(spec, labels(spec), heads, HEADS, shown, self._pick(row, parts)))
        return rows

    def _pick(self, row: int, parts: Sequence[Image.Image]) -> dict[str, list[int]]:
        """Return, per gallery, the candidate most similar to each part's subject; 0 is right for the first part."""
        if not self.galleries[row]:
            return {}
        embedded = self.recognisers.embed(parts)
        return {name: (embedded @ known.T).argmax(axis=1).tolist() for name, known in self.galleries[row].items()}


def portrait(subject: Subject) -> Image.Image:
    """Render a candidate's reference image: alone on white, without accessory; a function of the instance."""
    rng = np.random.default_rng([6, subject.identity])
    bare = dataclasses.replace(subject, accessory=None)
    return crop(render(Spec(place([bare], rng), "studio")), 0, SIZE, keep_background=False)


def gallery_of(subject: Subject, rng: Rng, nouns: list[str]) -> Gallery:
    """Return an instance and 19 distractors."""
    if subject.recoloured:
        others = [draw_distractor(rng, nouns) for _ in range(NUM_SAME_COLOUR + NUM_ANY_COLOUR)]
        others = [dataclasses.replace(other, recoloured=subject.recoloured) for other in others]
        return (subject, *others)
    colour = subject.look.colour_name
    same = [draw_distractor(rng, nouns, colour) for _ in range(NUM_SAME_COLOUR)]
    return (subject, *same, *(draw_distractor(rng, nouns) for _ in range(NUM_ANY_COLOUR)))


def draw_distractor(rng: Rng, nouns: list[str], colour: str | None = None) -> Subject:
    """Draw a random instance that no stage has seen, of one of these nouns and, if given, a colour word."""
    while True:
        identity = _draw_identity(rng)
        subject = Subject(str(rng.choice(nouns)), identity)
        if colour in (None, subject.look.colour_name):
            return subject


def distractor_spec(spec: Spec, rng: Rng, nouns: Sequence[str]) -> Spec:
    """Replace the subjects of a spec by distractors of other nouns, with the same changes."""

    def drawn(subject: Subject) -> Subject:
        other = draw_distractor(rng, [noun for noun in nouns if noun != subject.noun])
        return dataclasses.replace(subject, noun=other.noun, identity=other.identity)

    return _with_subjects(spec, drawn)


def twin_spec(spec: Spec) -> Spec:
    """Replace the subjects of a spec by other instances that the same words describe, with the same changes.

    Subjects have the same twins in all specs, except where those would not stand out from the scene.
    """
    rng = np.random.default_rng([31, *(placed.subject.identity for placed in spec.subjects)])
    while True:  # it ends: every colour word has shades that stand out where another of its shades does
        twin = _with_subjects(spec, lambda subject: _draw_twin(subject, rng))
        if stands_out(twin):
            return twin


def _with_subjects(spec: Spec, drawn: Callable[[Subject], Subject]) -> Spec:
    """Return a spec with other subjects in the same places."""
    swapped = (dataclasses.replace(placed, subject=drawn(placed.subject)) for placed in spec.subjects)
    return dataclasses.replace(spec, subjects=tuple(swapped))


def _draw_identity(rng: Rng) -> int:
    """Draw an instance's number that no stage has seen."""
    return FIRST_NEW_IDENTITY + int(rng.integers(FIRST_NEW_IDENTITY))


def _draw_twin(subject: Subject, rng: Rng) -> Subject:
    """Draw an instance that no stage has seen with the noun, colour words and kind of pattern of another."""
    look = subject.look
    while True:  # it ends: the words are those of an instance, so others have them too
        identity = _draw_identity(rng)
        first, second = colours_of(subject.noun, identity)
        if subject.recoloured is None and first != look.colour_name or look.second_name not in (None, second):
            continue
        twin = dataclasses.replace(subject, identity=identity)
        same_words = (twin.look.pattern, twin.look.second_name) == (look.pattern, look.second_name)
        if same_words and identity != subject.identity:
            return twin

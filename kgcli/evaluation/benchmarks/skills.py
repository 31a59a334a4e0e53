"""What the evaluation asks: prompts about individuals no stage has seen, each with the picture that would be right.

Every case is a pure function of (task, seed, index). Who a picture shows is asked by choice: `galleries` holds the
individuals to choose from, the right one first, and a judge points at the one most like the picture.

20 candidates are the right one, 10 of the same colour word and 9 of any colour, all of random nouns; a gallery of
"one noun" takes them all from the right one's noun. After a change of colour all candidates have the new colour, so
that it cannot tell them apart. The 10 candidates of a picture of two are those two, each of them in the other's
colour, and three more of the colour word of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from kgcli.data.sources.world import BASE_NOUNS, reference
from kgcli.world import text
from kgcli.world.spec import Spec, Subject, crop, draw_spec, is_held_out, place, render
from kgcli.world.tables import BASE_ONLY_NOUNS, FIRST_NEW_IDENTITY, UNSEEN_NOUNS

SIZE = 64  # pixels
NUM_SAME_COLOUR = 10  # of the 19 wrong candidates
NUM_ANY_COLOUR = 9
EDIT_KINDS = ("scene", "accessory", "colour", "style")

Rng = np.random.Generator
Part = str | Image.Image


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt, what it asks for, and whom the picture's subjects may be taken for."""

    task: str
    parts: tuple[Part, ...]  # of the prompt, in reading order
    spec: Spec  # the picture asked for
    seed: int  # of the noise
    kind: str = ""  # of an edit
    before: Spec | None = None  # of an edit: the picture in the prompt
    galleries: dict[str, tuple[Subject, ...]] = field(default_factory=dict)  # measure -> candidates

    @property
    def images(self) -> list[Image.Image]:
        """The pictures in the prompt."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def words(self) -> str:
        """The prompt for people."""
        return " ".join("".join(part if isinstance(part, str) else " <image> " for part in self.parts).split())


@dataclass(frozen=True)
class Task:
    """A set of cases: how one is drawn, and how many there are for each unit of `--num`."""

    title: str
    draw: Callable[[str, Rng, int], Case]
    share: float


def draw_cases(name: str, num: int, seed: int) -> list[Case]:
    """The cases of a task; `num` scales all tasks alike."""
    task, place_in_table = TASKS[name], list(TASKS).index(name)
    cases = []
    for index in range(max(round(task.share * num), 4)):
        rng = np.random.default_rng([5, seed, place_in_table, index])
        cases.append(task.draw(name, rng, index))
    return cases


def portrait(subject: Subject) -> Image.Image:
    """The picture by which a candidate is known: alone on white, without accessory; a function of the individual."""
    rng = np.random.default_rng([6, subject.identity])
    bare = dataclasses.replace(subject, accessory=None)
    return crop(render(Spec(place([bare], rng), "studio"), SIZE), 0, SIZE, keep_background=False)


def other_subject(spec: Spec, rng: Rng) -> Spec:
    """The same picture of somebody else: other nouns and other looks, changed as asked."""
    swapped = []
    for placed in spec.subjects:
        other = _draw_other(rng, [noun for noun in BASE_NOUNS if noun != placed.subject.noun])
        subject = dataclasses.replace(placed.subject, noun=other.noun, identity=other.identity)
        swapped.append(dataclasses.replace(placed, subject=subject))
    return dataclasses.replace(spec, subjects=tuple(swapped))


def choose_from(subject: Subject, rng: Rng, nouns: list[str]) -> tuple[Subject, ...]:
    """An individual and the 19 it may be taken for."""
    if subject.recoloured:
        others = [_draw_other(rng, nouns) for _ in range(NUM_SAME_COLOUR + NUM_ANY_COLOUR)]
        others = [dataclasses.replace(other, recoloured=subject.recoloured) for other in others]
        return (subject, *others)
    colour = subject.look.colour_name
    same = [_draw_other(rng, nouns, colour) for _ in range(NUM_SAME_COLOUR)]
    return (subject, *same, *(_draw_other(rng, nouns) for _ in range(NUM_ANY_COLOUR)))


def _text(task: str, rng: Rng, index: int) -> Case:
    spec = draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.3)
    return Case(task, (text.caption(spec, rng),), spec, _noise_seed(rng))


def _subject(task: str, rng: Rng, index: int) -> Case:
    """No noun in the prompt: what is shown has to come from the picture."""
    return _ask(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.0), rng, index, one_noun=True)


def _named(task: str, rng: Rng, index: int) -> Case:
    return _ask(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.0), rng, index, drop=False)


def _base_only(task: str, rng: Rng, index: int) -> Case:
    return _ask(task, draw_spec(rng, list(BASE_ONLY_NOUNS), new=True, accessory=0.0, styled=0.0), rng, index)


def _unseen(task: str, rng: Rng, index: int) -> Case:
    """Nothing but the judges has seen such a thing."""
    return _ask(task, draw_spec(rng, list(UNSEEN_NOUNS), new=True, accessory=0.0, styled=0.0), rng, index)


def _held_out(task: str, rng: Rng, index: int) -> Case:
    return _ask(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.5, held_out=True), rng, index)


def _styled(task: str, rng: Rng, index: int) -> Case:
    return _ask(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=1.0), rng, index)


def _pair(task: str, rng: Rng, index: int) -> Case:
    spec = draw_spec(rng, BASE_NOUNS, num_subjects=2, new=True, accessory=0.0, styled=0.0)
    left, right = (placed.subject for placed in spec.subjects)
    colours = [subject.look.colour_name for subject in (left, right)]
    swapped = (
        dataclasses.replace(left, recoloured=colours[1]),
        dataclasses.replace(right, recoloured=colours[0]),
    )
    others = tuple(_draw_other(rng, BASE_NOUNS, colour) for colour in colours for _ in range(3))
    parts = _filled(text.compositional(spec, rng, drop=index % 2 == 0), spec, rng, index // 2)
    return Case(task, parts, spec, _noise_seed(rng), galleries={"pair": (left, right, *swapped, *others)})


def _edit(task: str, rng: Rng, index: int) -> Case:
    kind = EDIT_KINDS[index % len(EDIT_KINDS)]
    while True:
        before = draw_spec(rng, BASE_NOUNS, new=True, accessory=0.1, styled=0.1)
        after, instruction = text.edit(before, rng)
        if _kind_of_edit(before, after) == kind and not is_held_out(after):
            break
    picture = render(before, SIZE).picture
    gallery = choose_from(after.subjects[0].subject, rng, BASE_NOUNS)
    return Case(task, (picture, " " + instruction), after, _noise_seed(rng), kind, before, {"picked": gallery})


def _ask(task: str, spec: Spec, rng: Rng, index: int, *, drop: bool = True, one_noun: bool = False) -> Case:
    subject = spec.subjects[0].subject
    parts = _filled(text.compositional(spec, rng, drop=drop), spec, rng, index)
    galleries = {"picked": choose_from(subject, rng, BASE_NOUNS)}
    if one_noun:
        galleries["picked_of_noun"] = choose_from(subject, rng, [subject.noun])
    return Case(task, parts, spec, _noise_seed(rng), galleries=galleries)


def _filled(fragments: text.Fragments, spec: Spec, rng: Rng, index: int) -> tuple[Part, ...]:
    """A prompt with a picture of each subject; every other one keeps its background."""
    subjects = iter([placed.subject for placed in spec.subjects])
    keep = index % 2 == 1
    return tuple(
        reference(next(subjects), rng, SIZE, keep_background=keep) if fragment is None else fragment
        for fragment in fragments
    )


def _draw_other(rng: Rng, nouns: list[str], colour: str | None = None) -> Subject:
    while True:
        identity = FIRST_NEW_IDENTITY + int(rng.integers(FIRST_NEW_IDENTITY))
        subject = Subject(str(rng.choice(nouns)), identity)
        if colour in (None, subject.look.colour_name):
            return subject


def _kind_of_edit(before: Spec, after: Spec) -> str:
    if before.scene != after.scene:
        return "scene"
    if before.style != after.style:
        return "style"
    recoloured = before.subjects[0].subject.recoloured != after.subjects[0].subject.recoloured
    return "colour" if recoloured else "accessory"


def _noise_seed(rng: Rng) -> int:
    return int(rng.integers(1 << 31))


# Append only: a task's place is part of its seed.
TASKS: dict[str, Task] = {
    "text": Task("text only", _text, 1.0),
    "subject": Task("subject, noun not named", _subject, 1.0),
    "named": Task("subject, noun named", _named, 0.5),
    "base_only": Task("subject, noun of the base alone", _base_only, 1 / 3),
    "held_out": Task("subject, held-out combination", _held_out, 1 / 3),
    "styled": Task("subject in a style", _styled, 2 / 3),
    "pair": Task("two subjects", _pair, 1.0),
    "edit": Task("edit", _edit, 4 / 3),
    "unseen": Task("subject, noun unknown to all", _unseen, 1 / 3),
}

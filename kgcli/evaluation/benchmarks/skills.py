"""The nano skills as a benchmark: prompts about instances that no stage has seen, each with the image that is right.

Every case is a pure function of (task, seed, index), and so is its item in a plan. Galleries are those of
`metrics.recognition`; one of "one noun" takes all its candidates from the right one's noun. The 10 candidates of an
image of two are those two, each of them in the other's colour, and three more of the colour word of each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgcli.data.sources.world import BASE_NOUNS, reference
from kgcli.evaluation.metrics.recognition import SIZE, Gallery, Rng, Seen, choose_from, draw_other
from kgcli.evaluation.plan import Item, Plan
from kgcli.world import text
from kgcli.world.spec import Spec, draw_spec, is_held_out, render
from kgcli.world.tables import BASE_ONLY_NOUNS, UNSEEN_NOUNS

SUITE = "nano-skills"
UNIT = 16  # cases generated at once
MARK = "<image>"
EDIT_KINDS = ("scene", "accessory", "colour", "style")
SKILL_MEASURES = {
    "noun": "right noun, of 58",
    "noun_probability": "probability of the noun",
    "picked": "subject picked, of 20",
    "picked_of_noun": "subject picked, of 20 of its noun",
    "nouns": "both nouns right",
    "pair": "both shown, each with its own looks",
    "pair_in_order": "... and on their own sides",
    "scene": "right scene",
    "style": "right style",
    "change": "change made",
    "kept": "subject kept, picked of 20",
    "done": "change made and subject kept",
    "rest": "other scene and style kept",
}

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
    galleries: dict[str, Gallery] = field(default_factory=dict)  # measure -> candidates

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
    """A set of cases: how one is drawn and scored, and how many there are for each unit of `--num`."""

    title: str
    draw: Callable[[str, Rng, int], Case]
    share: float
    score: Callable[[Case, Seen], dict[str, float]]


def draw_cases(name: str, num: int, seed: int) -> list[Case]:
    """Return the cases of a task; `num` scales all tasks alike."""
    return [_case(name, seed, index) for index in range(max(round(TASKS[name].share * num), 4))]


def skills_plan(data: Path, num: int, seed: int, method: Mapping[str, Any], tasks: Sequence[str] = ()) -> Plan:
    """Return the plan of some tasks, by default all; `data` is the folder of `write_inputs`."""
    names = [name for name in TASKS if not tasks or name in tasks]
    items = tuple(_item(case, seed, at) for name in names for at, case in enumerate(draw_cases(name, num, seed)))
    return Plan(suite=SUITE, protocol={"seed": seed, "num": num}, method=dict(method), data=str(data), items=items)


def write_inputs(plan: Plan) -> None:
    """Write the images of a plan's prompts into its data folder."""
    for item in plan.items:
        for name, image in zip(item.inputs, case_of(item).images, strict=True):
            path = Path(plan.data) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def case_of(item: Item) -> Case:
    """Return the case of an item of this suite."""
    _, seed, task, index = item.subject.split("/")
    return _case(task, int(seed), int(index))


def is_skill(item: Item) -> bool:
    """Tell whether an item is of this suite."""
    return item.subject.startswith(f"{SUITE}/")


@functools.lru_cache(maxsize=4096)
def _case(task: str, seed: int, index: int) -> Case:
    rng = np.random.default_rng([5, seed, list(TASKS).index(task), index])
    return TASKS[task].draw(task, rng, index)


def _item(case: Case, seed: int, index: int) -> Item:
    name = f"{case.task}/{index:05d}"
    return Item(
        path=f"images/{name}.png",
        unit=f"{case.task}/{index // UNIT}",
        subject=f"{SUITE}/{seed}/{name}",
        prompt=index,
        image=0,
        input_text="".join(part if isinstance(part, str) else MARK for part in case.parts),
        scored_text=case.words,
        inputs=tuple(f"{name}-{number}.png" for number in range(len(case.images))),
        seed=case.seed,
        category=case.task,
        kind=case.kind,
    )


def _text(task: str, rng: Rng, index: int) -> Case:
    spec = draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.3)
    return Case(task, (text.caption(spec, rng),), spec, _noise_seed(rng))


def _subject(task: str, rng: Rng, index: int) -> Case:
    """No noun in the prompt: what is shown has to come from the picture."""
    return _make(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.0), rng, index, one_noun=True)


def _named(task: str, rng: Rng, index: int) -> Case:
    return _make(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.0), rng, index, drop=False)


def _base_only(task: str, rng: Rng, index: int) -> Case:
    return _make(task, draw_spec(rng, list(BASE_ONLY_NOUNS), new=True, accessory=0.0, styled=0.0), rng, index)


def _unseen(task: str, rng: Rng, index: int) -> Case:
    """Nothing but the judges has seen such a thing."""
    return _make(task, draw_spec(rng, list(UNSEEN_NOUNS), new=True, accessory=0.0, styled=0.0), rng, index)


def _held_out(task: str, rng: Rng, index: int) -> Case:
    return _make(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=0.5, held_out=True), rng, index)


def _styled(task: str, rng: Rng, index: int) -> Case:
    return _make(task, draw_spec(rng, BASE_NOUNS, new=True, accessory=0.0, styled=1.0), rng, index)


def _pair(task: str, rng: Rng, index: int) -> Case:
    spec = draw_spec(rng, BASE_NOUNS, num_subjects=2, new=True, accessory=0.0, styled=0.0)
    left, right = (placed.subject for placed in spec.subjects)
    colours = [subject.look.colour_name for subject in (left, right)]
    swapped = (
        dataclasses.replace(left, recoloured=colours[1]),
        dataclasses.replace(right, recoloured=colours[0]),
    )
    others = tuple(draw_other(rng, BASE_NOUNS, colour) for colour in colours for _ in range(3))
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


def _make(task: str, spec: Spec, rng: Rng, index: int, *, drop: bool = True, one_noun: bool = False) -> Case:
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


def _kind_of_edit(before: Spec, after: Spec) -> str:
    if before.scene != after.scene:
        return "scene"
    if before.style != after.style:
        return "style"
    recoloured = before.subjects[0].subject.recoloured != after.subjects[0].subject.recoloured
    return "colour" if recoloured else "accessory"


def _noise_seed(rng: Rng) -> int:
    return int(rng.integers(1 << 31))


def _score_text(case: Case, seen: Seen) -> dict[str, float]:
    return {"noun": seen.says("noun"), "noun_probability": seen.noun_probability, **_place(seen)}


def _score_subject(case: Case, seen: Seen) -> dict[str, float]:
    picked = {name: float(chosen[0] == 0) for name, chosen in seen.picked.items()}
    return {**picked, "noun": seen.says("noun"), **_place(seen)}


def _score_pair(case: Case, seen: Seen) -> dict[str, float]:
    left, right = seen.picked["pair"]
    shown = {"pair": float({left, right} == {0, 1}), "pair_in_order": float((left, right) == (0, 1))}
    return {"nouns": seen.has_nouns, **shown, **_place(seen)}


def _score_edit(case: Case, seen: Seen) -> dict[str, float]:
    change, kept = seen.says(case.kind), float(seen.picked["picked"][0] == 0)
    rest = [seen.says(head) for head in ("scene", "style") if head != case.kind]
    return {"change": change, "kept": kept, "done": change * kept, "rest": float(all(rest))}


def _place(seen: Seen) -> dict[str, float]:
    """Scene, and style where one is asked for."""
    heads = ["scene"] if seen.spec.style == "photo" else ["scene", "style"]
    return {head: seen.says(head) for head in heads}


# Append only: a task's place is part of its seed.
TASKS: dict[str, Task] = {
    "text": Task("text only", _text, 1.0, _score_text),
    "subject": Task("subject, noun not named", _subject, 1.0, _score_subject),
    "named": Task("subject, noun named", _named, 0.5, _score_subject),
    "base_only": Task("subject, noun of the base alone", _base_only, 1 / 3, _score_subject),
    "held_out": Task("subject, held-out combination", _held_out, 1 / 3, _score_subject),
    "styled": Task("subject in a style", _styled, 2 / 3, _score_subject),
    "pair": Task("two subjects", _pair, 1.0, _score_pair),
    "edit": Task("edit", _edit, 4 / 3, _score_edit),
    "unseen": Task("subject, noun unknown to all", _unseen, 1 / 3, _score_subject),
}

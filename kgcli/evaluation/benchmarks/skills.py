"""The nano skills as a benchmark: prompts about instances that no stage has seen, each with its true image.

Every case and its item in a plan is a pure function of (task, seed, index). Galleries are those of
`metrics.recognition`; with `one_noun` all candidates share the right one's noun. The 10 candidates for an image of two
subjects are those two, each of them in the other's colour, and three distractors of each colour word.
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

from kgcli.data.sources.world_sample import BASE_NOUNS, reference
from kgcli.evaluation.metrics.recognition import Gallery, Prediction, Rng, draw_distractor, gallery_of
from kgcli.evaluation.plan import Item, Plan
from kgcli.world import text
from kgcli.world.rendering import render, stands_out
from kgcli.world.spec import Spec, draw_spec, is_held_out
from kgcli.world.tables import BASE_ONLY_NOUNS, SIZE, UNSEEN_NOUNS

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
    "pair": "both shown, each with its own identity",
    "pair_in_order": "... and on the right sides",
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
    """One prompt, the spec of its true image, and the galleries of its subjects."""

    task: str
    parts: tuple[Part, ...]  # of the prompt, in order
    spec: Spec  # of the true image
    seed: int  # of the noise
    kind: str = ""  # of an edit
    before: Spec | None = None  # of an edit: the image in the prompt
    galleries: dict[str, Gallery] = field(default_factory=dict)  # measure -> candidates

    @property
    def images(self) -> list[Image.Image]:
        """Images in the prompt."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def words(self) -> str:
        """The prompt as text, with `<image>` for each image."""
        return " ".join("".join(part if isinstance(part, str) else " <image> " for part in self.parts).split())


@dataclass(frozen=True)
class Draw:
    """The arguments of a case, which is a function of them alone."""

    task: str
    index: int
    rng: Rng

    def spec(self, nouns: Sequence[str] = BASE_NOUNS, **options: Any) -> Spec:
        """Return a random spec of new instances that stand out from their scene; `options` as of `draw_spec`."""
        while True:
            spec = draw_spec(self.rng, list(nouns), new=True, **{"accessory": 0.0, **options})
            if stands_out(spec):
                return spec


@dataclass(frozen=True)
class Task:
    """A set of cases: how a case is drawn and scored, and their number relative to `--num`."""

    title: str
    draw: Callable[[Draw], Case]
    scale: float
    score: Callable[[Case, Prediction], dict[str, float]]


def draw_cases(name: str, num: int, seed: int) -> list[Case]:
    """Return the cases of a task; `num` scales all tasks alike."""
    return [draw_case(name, seed, index) for index in range(max(round(TASKS[name].scale * num), 4))]


def skills_plan(
    data: Path,
    num: int,
    seed: int,
    method: Mapping[str, Any],
    tasks: Sequence[str] = (),
) -> Plan:
    """Return the plan of some tasks (default: `SKILLS`); `data` is the folder of `write_inputs`."""
    names = [name for name in TASKS if name in (tasks or SKILLS)]
    items = tuple(_item(case, seed, at) for name in names for at, case in enumerate(draw_cases(name, num, seed)))
    protocol = {"seed": seed, "num": num}
    return Plan(suite=SUITE, protocol=protocol, method=dict(method), data=str(data), items=items)


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
    return draw_case(task, int(seed), int(index))


def is_skill(item: Item) -> bool:
    """Tell whether an item is of this suite."""
    return item.subject.startswith(f"{SUITE}/")


@functools.lru_cache(maxsize=4096)
def draw_case(task: str, seed: int, index: int) -> Case:
    """Return one case of a task."""
    rng = np.random.default_rng([5, seed, list(TASKS).index(task), index])
    return TASKS[task].draw(Draw(task, index, rng))


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


def _text(draw: Draw) -> Case:
    return _told(draw, draw.spec(styled=0.3))


def _text_pair(draw: Draw) -> Case:
    return _told(draw, draw.spec(num_subjects=2, styled=0.3))


def _subject(draw: Draw) -> Case:
    """Leave the noun out of the prompt: the subject is known only from the image."""
    return _make(draw, draw.spec(styled=0.0), one_noun=True)


def _named(draw: Draw) -> Case:
    return _make(draw, draw.spec(styled=0.0), drop=False)


def _base_only(draw: Draw) -> Case:
    return _make(draw, draw.spec(list(BASE_ONLY_NOUNS), styled=0.0))


def _unseen(draw: Draw) -> Case:
    """Use a noun that only the recognisers have seen."""
    return _make(draw, draw.spec(list(UNSEEN_NOUNS), styled=0.0))


def _held_out(draw: Draw) -> Case:
    return _make(draw, draw.spec(styled=0.5, held_out=True))


def _styled(draw: Draw) -> Case:
    return _make(draw, draw.spec(styled=1.0))


def _pair(draw: Draw) -> Case:
    spec, rng = draw.spec(num_subjects=2, styled=0.0), draw.rng
    left, right = (placed.subject for placed in spec.subjects)
    colours = [subject.look.colour_name for subject in (left, right)]
    swapped = (
        dataclasses.replace(left, recoloured=colours[1]),
        dataclasses.replace(right, recoloured=colours[0]),
    )
    others = tuple(draw_distractor(rng, BASE_NOUNS, colour) for colour in colours for _ in range(3))
    fragments = text.compositional(spec, rng, drop=draw.index % 2 == 0)
    parts = _filled(fragments, spec, draw, keep=draw.index // 2 % 2 == 1)
    return _case(draw, parts, spec, galleries={"pair": (left, right, *swapped, *others)})


def _edit(draw: Draw) -> Case:
    kind, rng = EDIT_KINDS[draw.index % len(EDIT_KINDS)], draw.rng
    while True:
        before = draw.spec(accessory=0.1, styled=0.1)
        after, instruction = text.edit(before, rng)
        if _kind_of_edit(before, after) == kind and not is_held_out(after) and stands_out(after):
            break
    image = render(before).image
    gallery = gallery_of(after.subjects[0].subject, rng, BASE_NOUNS)
    return _case(draw, (image, " " + instruction), after, kind=kind, before=before, galleries={"picked": gallery})


def _told(draw: Draw, spec: Spec) -> Case:
    return _case(draw, (text.short_caption(spec, draw.rng),), spec)


def _make(draw: Draw, spec: Spec, *, drop: bool = True, one_noun: bool = False) -> Case:
    subject, rng = spec.subjects[0].subject, draw.rng
    parts = _filled(text.compositional(spec, rng, drop=drop), spec, draw, keep=draw.index % 2 == 1)
    galleries = {"picked": gallery_of(subject, rng, BASE_NOUNS)}
    if one_noun:
        galleries["picked_of_noun"] = gallery_of(subject, rng, [subject.noun])
    return _case(draw, parts, spec, galleries=galleries)


def _filled(fragments: text.Fragments, spec: Spec, draw: Draw, *, keep: bool) -> tuple[Part, ...]:
    """Fill a prompt with an image of each subject; `keep` keeps its background, which every other case does."""
    subjects = iter([placed.subject for placed in spec.subjects])
    return tuple(
        reference(next(subjects), draw.rng, SIZE, keep_background=keep) if fragment is None else fragment
        for fragment in fragments
    )


def _case(draw: Draw, parts: tuple[Part, ...], spec: Spec, **more: Any) -> Case:
    """Return a case; the seed of its noise is the last that is drawn."""
    return Case(draw.task, parts, spec, int(draw.rng.integers(1 << 31)), **more)


def _kind_of_edit(before: Spec, after: Spec) -> str:
    if before.scene != after.scene:
        return "scene"
    if before.style != after.style:
        return "style"
    recoloured = before.subjects[0].subject.recoloured != after.subjects[0].subject.recoloured
    return "colour" if recoloured else "accessory"


def _score_text(case: Case, prediction: Prediction) -> dict[str, float]:
    return {"noun": prediction.correct("noun"), "noun_probability": prediction.noun_probability, **_place(prediction)}


def _score_subject(case: Case, prediction: Prediction) -> dict[str, float]:
    picked = {name: float(chosen[0] == 0) for name, chosen in prediction.picked.items()}
    return {**picked, "noun": prediction.correct("noun"), **_place(prediction)}


def _score_text_pair(case: Case, prediction: Prediction) -> dict[str, float]:
    return {"nouns": prediction.has_nouns, **_place(prediction)}


def _score_pair(case: Case, prediction: Prediction) -> dict[str, float]:
    left, right = prediction.picked["pair"]
    shown = {"pair": float({left, right} == {0, 1}), "pair_in_order": float((left, right) == (0, 1))}
    return {"nouns": prediction.has_nouns, **shown, **_place(prediction)}


def _score_edit(case: Case, prediction: Prediction) -> dict[str, float]:
    change, kept = prediction.correct(case.kind), float(prediction.picked["picked"][0] == 0)
    rest = [prediction.correct(head) for head in ("scene", "style") if head != case.kind]
    return {"change": change, "kept": kept, "done": change * kept, "rest": float(all(rest))}


def _place(prediction: Prediction) -> dict[str, float]:
    """Score the scene, and the style unless it is a photo."""
    heads = ["scene"] if prediction.spec.style == "photo" else ["scene", "style"]
    return {head: prediction.correct(head) for head in heads}


# Append only: a task's index is part of its seed.
TASKS: dict[str, Task] = {
    "text": Task("text only", _text, 1.0, _score_text),
    "subject": Task("subject, noun not named", _subject, 1.0, _score_subject),
    "named": Task("subject, noun named", _named, 0.5, _score_subject),
    "base_only": Task("subject, noun of the base only", _base_only, 1 / 3, _score_subject),
    "held_out": Task("subject, held-out combination", _held_out, 1 / 3, _score_subject),
    "styled": Task("subject in a style", _styled, 2 / 3, _score_subject),
    "pair": Task("two subjects", _pair, 1.0, _score_pair),
    "edit": Task("edit", _edit, 4 / 3, _score_edit),
    "unseen": Task("subject, noun unknown to all", _unseen, 1 / 3, _score_subject),
    "text_pair": Task("two subjects from text", _text_pair, 1.0, _score_text_pair),
}
BASE_TASKS = ("text", "text_pair")  # of a base, which reads text alone
SKILLS = tuple(name for name in TASKS if name != "text_pair")  # of a whole model

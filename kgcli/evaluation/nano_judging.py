"""What the world's judges say of the pictures of the nano suites: right thing, scene and style, and whose picture.

Further measures beside those of the extractors, each in [0, 1] for a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kgcli.data.images import open_image
from kgcli.data.world.samples import BASE_NOUNS
from kgcli.data.world.spec import Spec
from kgcli.evaluation.cases import choose_from, other_subject, portrait
from kgcli.evaluation.figures import figures_of
from kgcli.evaluation.judges import HEADS, Judges, around, labels
from kgcli.evaluation.nano_suites import COCO, SIZE, VERSION, spec_of, subjects
from kgcli.evaluation.runs import Item
from kgcli.evaluation.scores import Figure, Measure, PictureScore, Scores

MEASURES = (
    Measure(name="judge_picked", title="subject picked of 20 by the judge"),
    Measure(name="judge_noun", title="right noun, says the judge"),
    Measure(name="judge_scene", title="right scene, says the judge"),
    Measure(name="judge_style", title="right style, says the judge"),
    Measure(name="judge_accessory", title="worn as asked, says the judge"),
)


def judge_values(
    items: Sequence[Item], pictures: Sequence[Image.Image], judges: Judges, suite: str
) -> list[dict[str, float]]:
    """What the judges find of one picture for each item, by measure; those that do not apply are not there."""
    fitted = [picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in pictures]
    specs = [spec_of(item, suite) for item in items]
    said = judges.classify(fitted) if fitted else {}
    picked = {} if suite == COCO else _picked(items, fitted, judges)
    rows = []
    for row, (spec, picture) in enumerate(zip(specs, fitted, strict=True)):
        verdict = {name: HEADS[name][int(values[row].argmax())] for name, values in said.items()}
        values = _values(spec, verdict, picture, judges)
        rows.append(values | ({"judge_picked": picked[row]} if row in picked else {}))
    return rows


def judge_figures(
    items: Sequence[Item], pictures: Sequence[Image.Image], judges: Judges, suite: str, row: str = "method"
) -> tuple[Figure, ...]:
    """The figures of `judge_values`, for all pictures and by category, kind and subject."""
    values = judge_values(items, pictures, judges, suite)
    scored = [score_of(item, one) for item, one in zip(items, values, strict=True)]
    return tuple(_shown(figures_of(scored, [measure.name for measure in MEASURES], row), suite))


def add_judges(scores: Scores, items: Sequence[Item], folder: Path, judges: Judges) -> Scores:
    """Scores of a nano run with what the judges say of the run's pictures and of the inputs in their place.

    Args:
        folder: of the run
    """
    found: dict[str, dict[str, float]] = {}
    values = judge_values(items, [open_image(folder / item.path) for item in items], judges, scores.suite)
    found = {item.path: one for item, one in zip(items, values, strict=True)}
    pictures = tuple(
        dataclasses.replace(one, values={**one.values, **found.get(one.path, {})}) for one in scores.pictures
    )
    names = [measure.name for measure in MEASURES if any(measure.name in one for one in values)]
    figures = _shown(figures_of(pictures, names), scores.suite)
    if scores.suite != COCO:
        inputs = [open_image(Path(scores.data) / item.inputs[0]) for item in items]
        figures = [*figures, *judge_figures(items, inputs, judges, scores.suite, row="copy-input")]
    return dataclasses.replace(
        scores,
        protocol={**scores.protocol, "judges_sha256": judges.sha256()},
        measures=(*scores.measures, *(measure for measure in MEASURES if measure.name in names)),
        figures=(*scores.figures, *figures),
        pictures=pictures,
    )


def other_spec(item: Item, suite: str) -> Spec:
    """The right picture but of another individual of another noun: the floor."""
    return other_subject(spec_of(item, suite), np.random.default_rng([25, VERSION, item.seed]))


def _picked(items: Sequence[Item], pictures: Sequence[Image.Image], judges: Judges) -> dict[int, float]:
    """For each picture whether its subject is picked of 20, ten of the others of its colour word."""
    galleries = {}
    for order, (name, subject) in enumerate(subjects().items()):
        chosen = choose_from(subject, np.random.default_rng([26, VERSION, order]), BASE_NOUNS)
        if any(item.subject == name for item in items):
            galleries[name] = judges.embed([portrait(one) for one in chosen])
    seen = judges.embed(pictures) if pictures else np.zeros((0, 1))
    return {row: float((galleries[item.subject] @ seen[row]).argmax() == 0) for row, item in enumerate(items)}


def _values(spec: Spec, verdict: Mapping[str, str], picture: Image.Image, judges: Judges) -> dict[str, float]:
    wanted = labels(spec)
    values = {f"judge_{head}": float(verdict[head] == wanted[head]) for head in ("scene", "style")}
    if len(spec.subjects) == 1:
        values["judge_noun"] = float(verdict["noun"] == wanted["noun"])
        values["judge_accessory"] = float(verdict["accessory"] == wanted["accessory"])
        return values
    parts = judges.classify([around(picture, index, len(spec.subjects)) for index in range(len(spec.subjects))])
    said = [HEADS["noun"][int(row.argmax())] for row in parts["noun"]]
    values["judge_noun"] = float(said == [placed.subject.noun for placed in spec.subjects])
    return values


def score_of(item: Item, values: Mapping[str, float]) -> PictureScore:
    """The numbers of one picture with what they belong to."""
    return PictureScore(
        path=item.path,
        subject=item.subject,
        prompt=item.prompt,
        image=item.image,
        scored_text=item.scored_text,
        inputs=item.inputs,
        values=values,
        category=item.category,
        kind=item.kind,
    )


def _shown(figures: Sequence[Figure], suite: str) -> list[Figure]:
    """Without a group for each caption of `nano-coco`: there are thousands, of one picture each."""
    return [one for one in figures if suite != COCO or not one.group.startswith("subject:")]

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
from kgcli.data.sources.world import BASE_NOUNS
from kgcli.evaluation.benchmarks.nano import COCO, SIZE, VERSION, spec_of, subjects
from kgcli.evaluation.benchmarks.skills import choose_from, portrait
from kgcli.evaluation.metrics.aggregate import figures_of
from kgcli.evaluation.metrics.subjects import COPY_INPUT, picture_score
from kgcli.evaluation.run.folder import Item
from kgcli.evaluation.scores import Figure, Measure, Scores
from kgcli.model.nano_recognisers import HEADS, Judges, around, labels
from kgcli.world.spec import Spec

MEASURES = (
    Measure(name="judge_picked", title="subject picked of 20 by the judge"),
    Measure(name="judge_noun", title="right noun, says the judge"),
    Measure(name="judge_scene", title="right scene, says the judge"),
    Measure(name="judge_style", title="right style, says the judge"),
    Measure(name="judge_accessory", title="worn as asked, says the judge"),
)


class NanoJudge:
    """Judges pictures of one list of items; the candidates' portraits are looked at once."""

    def __init__(self, items: Sequence[Item], suite: str, judges: Judges) -> None:
        self.items = items
        self.suite = suite
        self.judges = judges
        self.specs = [spec_of(item, suite) for item in items]
        self.galleries = {} if suite == COCO else _galleries({item.subject for item in items}, judges)

    def values(self, pictures: Sequence[Image.Image]) -> list[dict[str, float]]:
        """What is found of one picture for each item, by measure; those that do not apply are not there."""
        fitted = [picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in pictures]
        said, seen = self.judges.classify(fitted), self.judges.embed(fitted)
        rows = []
        for row, (item, spec, picture) in enumerate(zip(self.items, self.specs, fitted, strict=True)):
            verdict = {name: HEADS[name][int(values[row].argmax())] for name, values in said.items()}
            found = _values(spec, verdict, picture, self.judges)
            if item.subject in self.galleries:
                found["judge_picked"] = float((self.galleries[item.subject] @ seen[row]).argmax() == 0)
            rows.append(found)
        return rows

    def figures(self, values: Sequence[Mapping[str, float]], row: str = "method") -> tuple[Figure, ...]:
        """The figures of `values`: for all pictures and by category, kind and subject."""
        scored = [picture_score(item, one) for item, one in zip(self.items, values, strict=True)]
        return figures_of(scored, [measure.name for measure in MEASURES], row, by_subject=self.suite != COCO)


def add_judges(scores: Scores, items: Sequence[Item], folder: Path, judges: Judges, note: str) -> Scores:
    """Scores of a nano run with what the judges say of the run's pictures and of the inputs in their place.

    Args:
        folder: of the run
        note: what readers of the scores must know
    """
    judge = NanoJudge(items, scores.suite, judges)
    values = judge.values([open_image(folder / item.path, srgb=False) for item in items])
    figures = judge.figures(values)
    if scores.suite != COCO:
        inputs = judge.values([open_image(Path(scores.data) / item.inputs[0], srgb=False) for item in items])
        figures += judge.figures(inputs, row=COPY_INPUT)
    found = dict(zip((item.path for item in items), values, strict=True))
    names = {figure.measure for figure in figures}
    return dataclasses.replace(
        scores,
        protocol={**scores.protocol, "judges_sha256": judges.sha256()},
        notes=(note, *scores.notes),
        measures=(*scores.measures, *(measure for measure in MEASURES if measure.name in names)),
        figures=(*scores.figures, *figures),
        pictures=tuple(
            dataclasses.replace(one, values={**one.values, **found.get(one.path, {})}) for one in scores.pictures
        ),
    )


def _galleries(names: set[str], judges: Judges) -> dict[str, np.ndarray]:
    """For each subject the looks of the 20 it may be taken for, itself first; ten are of its colour word."""
    galleries = {}
    for order, (name, subject) in enumerate(subjects().items()):
        if name in names:
            chosen = choose_from(subject, np.random.default_rng([26, VERSION, order]), BASE_NOUNS)
            galleries[name] = judges.embed([portrait(one) for one in chosen])
    return galleries


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

"""What the judges say of pictures made for cases: a number in [0, 1] for each measure that applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from kgcli.evaluation.benchmarks.skills import SIZE, Case, portrait
from kgcli.model.nano_recognisers import HEADS, Judges, around, labels

Scores = dict[str, float]  # measure -> in [0, 1]

MEASURES = {
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


class Scorer:
    """Scores pictures of one list of cases; the candidates' portraits are looked at once."""

    def __init__(self, cases: Sequence[Case], judges: Judges) -> None:
        self.cases = cases
        self.judges = judges
        self.galleries = [
            {name: judges.embed([portrait(subject) for subject in gallery]) for name, gallery in case.galleries.items()}
            for case in cases
        ]

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Scores]:
        """The scores of one picture for each case."""
        fitted = [picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in pictures]
        said = self.judges.classify(fitted)
        scores = []
        for row, (case, picture) in enumerate(zip(self.cases, fitted, strict=True)):
            verdict = {name: values[row] for name, values in said.items()}
            parts = [around(picture, index, len(case.spec.subjects)) for index in range(len(case.spec.subjects))]
            if len(parts) > 1:
                verdict["noun"] = self.judges.classify(parts)["noun"]
            scores.append(SCORES[case.task](case, verdict, self._choices(row, parts)))
        return scores

    def _choices(self, row: int, parts: Sequence[Image.Image]) -> dict[str, list[int]]:
        """For each gallery, the candidate most like the subject of each part; 0 is the right one for the first."""
        if not self.galleries[row]:
            return {}
        seen = self.judges.embed(parts)
        return {name: (seen @ known.T).argmax(axis=1).tolist() for name, known in self.galleries[row].items()}


Verdict = dict[str, np.ndarray]  # head -> probabilities; of two subjects' nouns, a row each
Choices = dict[str, list[int]]


def _text(case: Case, verdict: Verdict, choices: Choices) -> Scores:
    noun = labels(case.spec)["noun"]
    sure = float(verdict["noun"][HEADS["noun"].index(noun)])
    return {"noun": _says(verdict, "noun", noun), "noun_probability": sure, **_place(case, verdict)}


def _subject(case: Case, verdict: Verdict, choices: Choices) -> Scores:
    picked = {name: float(chosen[0] == 0) for name, chosen in choices.items()}
    return {**picked, "noun": _says(verdict, "noun", labels(case.spec)["noun"]), **_place(case, verdict)}


def _pair(case: Case, verdict: Verdict, choices: Choices) -> Scores:
    left, right = choices["pair"]
    shown = {"pair": float({left, right} == {0, 1}), "pair_in_order": float((left, right) == (0, 1))}
    nouns = [HEADS["noun"][place] for place in verdict["noun"].argmax(axis=-1)]
    right_nouns = float(nouns == [placed.subject.noun for placed in case.spec.subjects])
    return {"nouns": right_nouns, **shown, **_place(case, verdict)}


def _edit(case: Case, verdict: Verdict, choices: Choices) -> Scores:
    wanted = labels(case.spec)
    change = _says(verdict, case.kind, wanted[case.kind])
    kept = float(choices["picked"][0] == 0)
    rest = [_says(verdict, head, wanted[head]) for head in ("scene", "style") if head != case.kind]
    return {"change": change, "kept": kept, "done": change * kept, "rest": float(all(rest))}


def _place(case: Case, verdict: Verdict) -> Scores:
    """Scene, and style where one is asked for."""
    wanted = labels(case.spec)
    heads = ["scene"] if case.spec.style == "photo" else ["scene", "style"]
    return {head: _says(verdict, head, wanted[head]) for head in heads}


def _says(verdict: Verdict, head: str, choice: str) -> float:
    return float(HEADS[head][int(verdict[head].argmax())] == choice)


SCORES: dict[str, Callable[[Case, Verdict, Choices], Scores]] = {
    "text": _text,
    "pair": _pair,
    "edit": _edit,
    **dict.fromkeys(("subject", "named", "base_only", "held_out", "styled", "unseen"), _subject),
}

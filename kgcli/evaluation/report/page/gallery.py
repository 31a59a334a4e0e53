"""Grids of pictures, the input beside the outputs, and the best and worst of each measure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from kgcli.evaluation.report.page.cases import Case, Cases
from kgcli.evaluation.report.page.markup import Html, join, tag
from kgcli.evaluation.report.page.tables import TIMES, Figures, number, run_mark
from kgcli.evaluation.report.page.thumbnails import Thumbnails
from kgcli.evaluation.scores import Measure

MAX_CAPTION = 3  # numbers under a picture


def subject_id(place: int) -> str:
    """Of the element of a subject."""
    return f"subject-{place}"


def captioned(figures: Figures) -> list[Measure]:
    """The measures whose numbers stand under each picture: primary ones first."""
    scored = {name for run in figures.runs for one in run.scores.pictures[:1] for name in one.values}
    return [measure for measure in figures.measures if measure.name in scored][:MAX_CAPTION]


def galleries(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> list[Html]:
    """One closed box for each subject; its pictures are not decoded before it is opened."""
    held: dict[int, list[Case]] = {}
    for case in cases.shown:
        held.setdefault(case.subject, []).append(case)
    alone = len(cases.subjects) == 1
    return [
        _gallery(figures, place, cases.subjects[place], held[place], thumbnails, alone)
        for place in range(len(cases.subjects))
        if place in held
    ]


def extremes(figures: Figures, cases: Cases, thumbnails: Thumbnails, measures: Iterable[Measure]) -> list[Html]:
    """For each measure and run a strip of the best and one of the worst, each a link to its place in the grids."""
    blocks = []
    for measure in measures:
        strips = []
        for run in range(len(figures.runs)):
            for title, found in zip(("best", "worst"), cases.extremes.get((measure.name, run), ()), strict=False):
                links = (_link(figures, case, measure, thumbnails) for case in found)
                strips.append(tag("div", tag("h4", run_mark(run), f"{figures.runs[run].name}, {title}"), *links))
        if strips:
            blocks.append(tag("div", tag("h3", measure.title), tag("div", *strips, class_="strips"), class_="extreme"))
    return blocks


def _gallery(
    figures: Figures, place: int, name: str, cases: Sequence[Case], thumbnails: Thumbnails, alone: bool
) -> Html:
    inputs = next((case.inputs for case in cases if case.inputs), ())
    small = [thumbnails.image(path, "") for path in inputs[:1]]
    kinds = sorted({case.score.category for case in cases} - {""})
    summary = tag(
        "summary",
        *small,
        tag("span", name, class_="name"),
        tag("span", ", ".join(kinds), class_="what") if len(kinds) == 1 else "",
        _means(figures, name),
        tag("span", f"{len(cases):,} pictures", class_="count"),
    )
    ordered = sorted(
        cases, key=lambda case: (case.score.prompt, case.score.subject, case.score.inputs, case.run, case.score.image)
    )
    by_inputs: dict[tuple[Path, ...], list[Case]] = {}
    for case in ordered:
        by_inputs.setdefault(case.inputs, []).append(case)
    groups = (_group(figures, paths, some, thumbnails) for paths, some in by_inputs.items())
    content = tag("template", *groups)
    return tag("details", summary, content, id=subject_id(place), class_="subject", open=alone)


def _means(figures: Figures, name: str) -> Html:
    """The subject's own figures, by run."""
    parts = []
    for run in range(len(figures.runs)):
        found = [(one, figures.find(run, one.name, group=f"subject:{name}")) for one in captioned(figures)]
        shown = [number(figure.value, figures.decimals(one.name)) for one, figure in found if figure is not None]
        if shown:
            parts.append(tag("span", run_mark(run), f" {TIMES} ".join(shown)))
    return tag("span", *parts, class_="means")


def _group(figures: Figures, inputs: Sequence[Path], cases: Sequence[Case], thumbnails: Thumbnails) -> Html:
    prompts = (_prompt(figures, list(some), thumbnails) for _, some in groupby(cases, key=_asked))
    single = len({(one.run, *_asked(one)) for one in cases}) == len(cases)
    rows = tag("div", *prompts, class_="prompts tiles" if single else "prompts")
    if not inputs:
        return tag("div", rows, class_="group")
    pictures = (
        tag("figure", thumbnails.image(path, f"input {path.name}"), tag("figcaption", path.name)) for path in inputs
    )
    title = "Input" if len(inputs) == 1 else "Inputs"
    return tag("div", tag("div", tag("h4", title), *pictures, class_="inputs"), rows, class_="group")


def _asked(case: Case) -> tuple[str, int]:
    return case.score.subject, case.score.prompt


def _prompt(figures: Figures, cases: Sequence[Case], thumbnails: Thumbnails) -> Html:
    first = cases[0]
    heading = [tag("h4", first.score.scored_text or "(no text)")]
    if first.input_text and first.input_text != first.score.scored_text:
        heading.append(tag("p", "read: ", tag("code", first.input_text), class_="read"))
    if first.score.kind:
        heading.append(tag("span", first.score.kind, class_="kind"))
    rows = []
    for run, some in groupby(cases, key=lambda case: case.run):
        label = [tag("span", run_mark(run), figures.runs[run].name, class_="run")] if len(figures.runs) > 1 else []
        rows.append(tag("div", *label, *(_case(figures, case, thumbnails) for case in some), class_="outputs"))
    return tag("div", tag("div", *heading, class_="says"), *rows, class_="prompt")


def _case(figures: Figures, case: Case, thumbnails: Thumbnails) -> Html:
    values = case.score.values
    shown = [_short(figures, values[one.name], one) for one in captioned(figures) if one.name in values]
    numbers = ",".join(
        f"{values[one.name]:.6g}" if one.name in values else "" for one in figures.runs[0].scores.measures
    )
    return tag(
        "button",
        thumbnails.image(case.picture, f"{case.score.scored_text}, image {case.score.image}"),
        tag("span", "  ".join(shown), class_="score"),
        type="button",
        class_="case",
        id=case.id,
        data_values=numbers,
        data_path=case.score.path,
    )


def _short(figures: Figures, value: float, measure: Measure) -> str:
    """A number without the 0 before its point: three stand under a small picture."""
    return re.sub(r"^(\W?)0\.", r"\1.", number(value, figures.decimals(measure.name)))


def _link(figures: Figures, case: Case, measure: Measure, thumbnails: Thumbnails) -> Html:
    value = number(case.score.values[measure.name], figures.decimals(measure.name))
    said = join([tag("b", value), tag("span", case.score.subject)])
    return tag(
        "a",
        thumbnails.image(case.picture, case.score.scored_text),
        tag("span", said, class_="score"),
        href=f"#{case.id}",
        title=case.score.scored_text,
    )

"""Image grids, the input beside the outputs, and the best and worst of each measure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from kgcli.evaluation.report.page.cases import Cases, ShownCase
from kgcli.evaluation.report.page.tables import TIMES, Figures, number
from kgcli.evaluation.report.page.templates import html
from kgcli.evaluation.report.page.thumbnails import Thumbnails
from kgcli.evaluation.scores import Measure

MAX_CAPTION = 3  # numbers under an image
MAX_OPEN = 400  # images up to which all galleries are open at first; else the first is
NUM_GLANCE = 8  # images of each run at the top of the page


def subject_id(place: int) -> str:
    """Return the element id of a subject."""
    return f"subject-{place}"


def captioned(figures: Figures) -> list[Measure]:
    """Return the measures shown under each image, primary ones first."""
    scored = {name for run in figures.runs for one in run.scores.pictures[:1] for name in one.values}
    return [measure for measure in figures.measures if measure.name in scored][:MAX_CAPTION]


def galleries(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> list[Markup]:
    """Make a box for each subject, open for few images; those of a closed one are decoded when it is opened."""
    held: dict[int, list[ShownCase]] = {}
    for case in cases.shown:
        held.setdefault(case.subject, []).append(case)
    few = len(cases.shown) <= MAX_OPEN
    return [
        _gallery(figures, place, cases.subjects[place], held[place], thumbnails, few or place == min(held))
        for place in range(len(cases.subjects))
        if place in held
    ]


def glance(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> Markup | None:
    """Make a row of images for each run, of subjects evenly spaced and alike for all; None without images."""
    places = sorted({case.subject for case in cases.shown})
    step = max(len(places) / NUM_GLANCE, 1.0)
    chosen = {places[int(at * step)] for at in range(min(NUM_GLANCE, len(places)))}
    rows = []
    for run in range(len(figures.runs)):
        own = [case for case in cases.shown if case.run == run]
        first = {case.subject: case for case in reversed(own) if case.subject in chosen}
        picked = [first[place] for place in sorted(first)] if len(first) > 1 else own[:: max(len(own) // NUM_GLANCE, 1)]
        links = [_shown(case, thumbnails) for case in picked[:NUM_GLANCE]]
        if links:
            rows.append((run, figures.runs[run].name if len(figures.runs) > 1 else "", links))
    return html("glance", rows=rows) if rows else None


def extremes(figures: Figures, cases: Cases, thumbnails: Thumbnails, measures: Iterable[Measure]) -> list[Markup]:
    """Make strips of the best and worst of each measure and run, linked to their places in the grids."""
    blocks = []
    for measure in measures:
        strips = []
        for run in range(len(figures.runs)):
            for title, found in zip(("best", "worst"), cases.extremes.get((measure.name, run), ()), strict=False):
                links = [_link(figures, case, measure, thumbnails) for case in found]
                strips.append((run, f"{figures.runs[run].name}, {title}", links))
        if strips:
            blocks.append(html("extreme", title=measure.title, strips=strips))
    return blocks


def _gallery(
    figures: Figures, place: int, name: str, cases: Sequence[ShownCase], thumbnails: Thumbnails, is_open: bool
) -> Markup:
    inputs = next((case.inputs for case in cases if case.inputs), ())
    kinds = sorted({case.score.category for case in cases} - {""})
    ordered = sorted(
        cases, key=lambda case: (case.score.prompt, case.score.subject, case.score.inputs, case.run, case.score.image)
    )
    by_inputs: dict[tuple[Path, ...], list[ShownCase]] = {}
    for case in ordered:
        by_inputs.setdefault(case.inputs, []).append(case)
    return html(
        "gallery",
        id=subject_id(place),
        open=is_open,
        small=Markup("").join(thumbnails.image(path, "") for path in inputs[:1]),
        name=name,
        kind=kinds[0] if len(kinds) == 1 else "",
        means=_means(figures, name),
        count=f"{len(cases):,}",
        groups=Markup("").join(_group(figures, paths, some, thumbnails) for paths, some in by_inputs.items()),
    )


def _means(figures: Figures, name: str) -> list[tuple[int, str]]:
    """Return the subject's own scores, by run."""
    parts = []
    for run in range(len(figures.runs)):
        found = [(one, figures.find(run, one.name, group=f"subject:{name}")) for one in captioned(figures)]
        shown = [number(figure.value, figures.decimals(one.name)) for one, figure in found if figure is not None]
        if shown:
            parts.append((run, f" {TIMES} ".join(shown)))
    return parts


def _group(figures: Figures, inputs: Sequence[Path], cases: Sequence[ShownCase], thumbnails: Thumbnails) -> Markup:
    prompts = Markup("").join(_prompt(figures, list(some), thumbnails) for _, some in groupby(cases, key=_prompt_key))
    return html(
        "group",
        title="Input" if len(inputs) == 1 else "Inputs",
        inputs=[(thumbnails.image(path, f"input {path.name}"), path.name) for path in inputs],
        tiles=len({(one.run, *_prompt_key(one)) for one in cases}) == len(cases),
        prompts=prompts,
    )


def _prompt_key(case: ShownCase) -> tuple[str, int]:
    return case.score.subject, case.score.prompt


def _prompt(figures: Figures, cases: Sequence[ShownCase], thumbnails: Thumbnails) -> Markup:
    first, several = cases[0], len(figures.runs) > 1
    rows = [
        (
            run,
            figures.runs[run].name if several else "",
            Markup("").join(_case(figures, case, thumbnails) for case in some),
        )
        for run, some in groupby(cases, key=lambda case: case.run)
    ]
    return html(
        "prompt",
        text=first.score.scored_text or "(no text)",
        read=first.input_text if first.input_text != first.score.scored_text else "",
        kind=first.score.kind,
        rows=rows,
    )


def _case(figures: Figures, case: ShownCase, thumbnails: Thumbnails) -> Markup:
    values = case.score.values
    shown = [_short(figures, values[one.name], one) for one in captioned(figures) if one.name in values]
    numbers = ",".join(
        f"{values[one.name]:.6g}" if one.name in values else "" for one in figures.runs[0].scores.measures
    )
    return html(
        "case",
        shown=thumbnails.image(case.file, f"{case.score.scored_text}, image {case.score.image}"),
        scores="  ".join(shown),
        id=case.id,
        values=numbers,
        path=case.score.path,
    )


def _short(figures: Figures, value: float, measure: Measure) -> str:
    """Format a number without its leading 0: three fit under a small image."""
    return re.sub(r"^(\W?)0\.", r"\1.", number(value, figures.decimals(measure.name)))


def _link(figures: Figures, case: ShownCase, measure: Measure, thumbnails: Thumbnails) -> dict[str, str]:
    return {
        **_shown(case, thumbnails),
        "value": number(case.score.values[measure.name], figures.decimals(measure.name)),
        "subject": case.score.subject,
    }


def _shown(case: ShownCase, thumbnails: Thumbnails) -> dict[str, str]:
    text = case.score.scored_text
    return {"id": case.id, "text": text, "image": thumbnails.image(case.file, text)}

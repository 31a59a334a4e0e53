"""A report page of scored runs: a single self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from kgcli.evaluation.report.compare import ScoredRun, compare, flatten
from kgcli.evaluation.report.page.cases import MAX_IMAGES, Cases, choose
from kgcli.evaluation.report.page.gallery import captioned, extremes, galleries, glance, subject_id
from kgcli.evaluation.report.page.plots import histogram, subject_plot
from kgcli.evaluation.report.page.tables import (
    Figures,
    difference_table,
    full_table,
    group_table,
    results_table,
)
from kgcli.evaluation.report.page.templates import asset, html, page
from kgcli.evaluation.report.page.thumbnails import Thumbnails, side_for
from kgcli.evaluation.scores import Measure

TITLES = {"dreambench": "DreamBench", "coco": "COCO"}
NANO = (
    "Nano suite. These scores are of a small synthetic world and of evaluators made for it. "
    "Do not compare them with scores on the published benchmark."
)


def build_page(
    runs: Sequence[ScoredRun], images: Sequence[Path] = (), limit: int = MAX_IMAGES, data: Path | None = None
) -> str:
    """Build the page of runs of one protocol.

    `images` are the folders of their images, by default the runs' own; `limit` is the maximum number shown; `data` is
    the folder of the inputs, which are omitted without it.
    """
    figures = Figures(runs=tuple(runs))
    cases = choose(runs, images or [run.folder for run in runs], limit, data)
    thumbnails = Thumbnails(side_for(len(cases.shown)))
    named = cases.subjects if figures.by_subject else ()
    links = {name: subject_id(place) for place, name in enumerate(named)}
    sections = [
        ("glance", "At a glance", glance(figures, cases, thumbnails)),
        ("results", "Results", _results(figures)),
        ("differences", "Differences", _differences(figures)),
        ("subjects", "Subjects", _subjects(figures, links)),
        ("groups", "Breakdown", _groups(figures)),
        ("spread", "Distribution", _spread(figures)),
        ("extremes", "Best and worst", _extremes(figures, cases, thumbnails)),
        ("images", "Images", _images(figures, cases, thumbnails)),
        ("protocol", "Protocol", _protocol(figures)),
    ]
    suite = runs[0].scores.suite
    measures = json.dumps([measure.title for measure in runs[0].scores.measures]).replace("<", "\\u003c")
    return page(
        title=f"{_suite_title(suite)}: {', '.join(run.name for run in runs)}",
        heading=_suite_title(suite),
        runs=[(run.name, run.scores.method.get("name")) for run in runs],
        banner=NANO if suite.startswith("nano") else "",
        sections=[(name, title, content) for name, title, content in sections if content],
        style=Markup(asset("style.css")),
        script=Markup(asset("script.js")),
        measures=Markup(measures),
    )


def _suite_title(suite: str) -> str:
    name = suite.removeprefix("nano-")
    title = TITLES.get(name, name)
    return f"{title}, nano twin" if suite != name else title


def _results(figures: Figures) -> Markup:
    nano = " (nano)" if figures.runs[0].scores.suite.startswith("nano") else ""
    note = html(
        "note",
        text="The 95 % interval is below each value: from the t distribution over subjects, else from a bootstrap. "
        "Click a column heading to sort.",
    )
    every = html("more", summary="All scores, with both intervals", content=full_table(figures))
    tables = [results_table(figures, figures.main, f"All images{nano}")]
    others = [measure for measure in figures.measures if measure not in figures.main]
    if others:
        tables.append(results_table(figures, others, f"Other measures{nano}"))
    return Markup("").join([note, *tables, every])


def _differences(figures: Figures) -> Markup | None:
    if len(figures.runs) == 1:
        return None
    shown = difference_table(compare(figures.runs), figures)
    note = "Clear: both intervals exclude 0. Only images of both runs are compared."
    return None if shown is None else html("note", text=note) + shown


def _subjects(figures: Figures, links: dict[str, str]) -> Markup | None:
    plots = [(measure, subject_plot(figures, measure, links)) for measure in figures.measures]
    shown = _plots(plots, "The line is the mean over subjects, the band its 95 % interval.")
    if shown is None:
        return None
    rows = group_table(figures, "subject", "Scores of each subject", links)
    return shown + html("more", summary="The same as a table", content=rows) if rows else shown


def _spread(figures: Figures) -> Markup | None:
    plots = [(measure, histogram(figures, measure)) for measure in figures.measures]
    return _plots(plots, "Distribution of the values of single images, as a fraction of each run's images.")


def _plots(plots: Sequence[tuple[Measure, Markup | None]], note: str) -> Markup | None:
    """Lay out the plots; those of secondary measures in a closed box."""
    found = [(measure, plot) for measure, plot in plots if plot is not None]
    if not found:
        return None
    first = [one for one in found if one[0].primary] or found[:3]
    later = [one for one in found if one not in first]
    shown = html("note", text=note) + _figures(first)
    return shown + html("more", summary="Other measures", content=_figures(later)) if later else shown


def _figures(plots: Sequence[tuple[Measure, Markup]]) -> Markup:
    return html("plots", shown=[(measure.title, plot) for measure, plot in plots])


def _groups(figures: Figures) -> Markup | None:
    tables = [group_table(figures, prefix, f"By {prefix}") for prefix in figures.prefixes()]
    shown = [one for one in tables if one is not None]
    return Markup("").join(shown) if shown else None


def _extremes(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> Markup | None:
    others = [measure for measure in figures.measures if measure not in figures.main]
    blocks = extremes(figures, cases, thumbnails, figures.main)
    later = extremes(figures, cases, thumbnails, others)
    if not blocks:
        blocks, later = later, []
    if not blocks:
        return None
    parts = [html("note", text="Each links to its place among the images."), *blocks]
    if later:
        parts.append(html("more", summary="Other measures", content=Markup("").join(later)))
    return Markup("").join(parts)


def _images(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> Markup | None:
    if not cases.shown:
        return None
    boxes = galleries(figures, cases, thumbnails)
    words = [f"{len(cases.shown):,} of {cases.total:,} images, at most {thumbnails.side} pixels wide and high."]
    if len(cases.shown) < cases.total:
        words.append("An evenly spaced selection plus the best and worst.")
    legend = " \u00b7 ".join(measure.title for measure in captioned(figures))
    if legend:
        words.append(f"Under each: {legend}.")
    if thumbnails.num_missing:
        words.append(f"{thumbnails.num_missing:,} files were not found or could not be read.")
    if thumbnails.num_not_given:
        words.append("The inputs are not shown; give their folder with kg eval report --data FOLDER.")
    tools = [Markup(asset("filter.html"))] if len(boxes) > 1 else []
    return Markup("").join([html("note", text=" ".join(words)), *tools, *boxes])


def _protocol(figures: Figures) -> Markup:
    first = figures.runs[0].scores
    notes = list(dict.fromkeys(note for run in figures.runs for note in run.scores.notes))
    same = _beside("Generation and scoring", [{"suite": first.suite, **dict(flatten(first.protocol))}])
    names = [run.name for run in figures.runs]
    method = _beside("Method", [dict(flatten(run.scores.method)) for run in figures.runs], names)
    versions = _beside("Versions", [dict(run.scores.versions) for run in figures.runs], names)
    return html("protocol", tables=same + method + versions, notes=notes)


def _beside(caption: str, facts: Sequence[dict[str, str]], names: Sequence[str] = ()) -> Markup:
    """Tabulate nested values: one column per run if the runs are named."""
    keys = dict.fromkeys(key for one in facts for key in one)
    rows = [(key, [one.get(key, "") for one in facts]) for key in keys]
    return html("beside", caption=caption, names=names if len(names) > 1 else (), rows=rows)

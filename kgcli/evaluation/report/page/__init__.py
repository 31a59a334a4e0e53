"""One page about scored runs: a single HTML file that asks nothing of the network. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from kgcli.evaluation.report.compare import Run, compare, flatten
from kgcli.evaluation.report.page.cases import MAX_PICTURES, Cases, choose
from kgcli.evaluation.report.page.gallery import captioned, extremes, galleries, subject_id
from kgcli.evaluation.report.page.markup import Html, join, tag
from kgcli.evaluation.report.page.plots import histogram, subject_plot
from kgcli.evaluation.report.page.tables import (
    Figures,
    difference_table,
    full_table,
    group_table,
    results_table,
    run_mark,
)
from kgcli.evaluation.report.page.thumbnails import Thumbnails, side_for
from kgcli.evaluation.scores import Measure

TITLES = {"dreambench": "DreamBench", "coco": "COCO"}
NANO = (
    "Nano suite. These scores are of a small made-up world and of evaluators made for it. "
    "They must not be read as, or set beside, scores on the published benchmark."
)


def build_page(
    runs: Sequence[Run], pictures: Sequence[Path] = (), limit: int = MAX_PICTURES, data: Path | None = None
) -> str:
    """The page of runs of one protocol.

    `pictures` are the folders their pictures are below, by default the runs' own; `limit` is how many it shows; `data`
    is the folder of the inputs, which are left out without it.
    """
    figures = Figures(runs=tuple(runs))
    cases = choose(runs, pictures or [run.folder for run in runs], limit, data)
    thumbnails = Thumbnails(side_for(len(cases.shown)))
    named = cases.subjects if figures.by_subject else ()
    links = {name: subject_id(place) for place, name in enumerate(named)}
    sections = [
        ("results", "Results", _results(figures)),
        ("differences", "Differences", _differences(figures)),
        ("subjects", "Subjects", _subjects(figures, links)),
        ("groups", "Breakdown", _groups(figures)),
        ("spread", "Spread", _spread(figures)),
        ("extremes", "Best and worst", _extremes(figures, cases, thumbnails)),
        ("pictures", "Pictures", _pictures(figures, cases, thumbnails)),
        ("protocol", "Protocol", _protocol(figures)),
    ]
    present = [(name, title, content) for name, title, content in sections if content]
    body = join(
        tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")
        for name, title, content in present
    )
    suite = runs[0].scores.suite
    return Template(_asset("page.html")).substitute(
        title=join([f"{_suite_title(suite)}: {', '.join(run.name for run in runs)}"]),
        heading=join([_suite_title(suite)]),
        runs=join(tag("li", run_mark(at), tag("b", run.name), _method(run)) for at, run in enumerate(runs)),
        banner=tag("p", NANO, class_="banner", role="note") if suite.startswith("nano") else "",
        navigation=join(tag("a", title, href=f"#{name}") for name, title, _ in present),
        body=body,
        style=_asset("style.css"),
        script=_asset("script.js"),
        measures=json.dumps([measure.title for measure in runs[0].scores.measures]).replace("<", "\\u003c"),
    )


def _suite_title(suite: str) -> str:
    name = suite.removeprefix("nano-")
    title = TITLES.get(name, name)
    return f"{title}, nano twin" if suite != name else title


def _method(run: Run) -> Html:
    method = run.scores.method.get("name")
    return tag("span", f"method {method}", class_="what") if method else Html("")


def _results(figures: Figures) -> Html:
    nano = " (nano)" if figures.runs[0].scores.suite.startswith("nano") else ""
    note = tag(
        "p",
        "Below each value stands its 95 % interval: from the t distribution over subjects, else from a bootstrap. "
        "Click the head of a column to sort.",
        class_="note",
    )
    every = tag("details", tag("summary", "All figures, with both intervals"), full_table(figures), class_="more")
    tables = [results_table(figures, figures.main, f"All pictures{nano}")]
    others = [measure for measure in figures.measures if measure not in figures.main]
    if others:
        tables.append(results_table(figures, others, f"Other measures{nano}"))
    return join([note, *tables, every])


def _differences(figures: Figures) -> Html | None:
    if len(figures.runs) == 1:
        return None
    shown = difference_table(compare(figures.runs), figures)
    note = "Clear: both intervals leave out 0. Only pictures that both runs have are compared."
    return None if shown is None else join([tag("p", note, class_="note"), shown])


def _subjects(figures: Figures, links: dict[str, str]) -> Html | None:
    plots = [(measure, subject_plot(figures, measure, links)) for measure in figures.measures]
    shown = _plots(plots, "The line is the mean over subjects, the band its 95 % interval.")
    if shown is None:
        return None
    rows = group_table(figures, "subject", "Scores of each subject", links)
    more = tag("details", tag("summary", "The same as a table"), rows, class_="more") if rows else ""
    return join([shown, more])


def _spread(figures: Figures) -> Html | None:
    plots = [(measure, histogram(figures, measure)) for measure in figures.measures]
    return _plots(plots, "How the values of single pictures are spread, each run as shares of its own pictures.")


def _plots(plots: Sequence[tuple[Measure, Html | None]], note: str) -> Html | None:
    """The drawings there are; those of measures that are not primary in a closed box."""
    drawn = [(measure, plot) for measure, plot in plots if plot is not None]
    if not drawn:
        return None
    first = [one for one in drawn if one[0].primary] or drawn[:3]
    later = [one for one in drawn if one not in first]
    parts = [tag("p", note, class_="note"), _figures(first)]
    if later:
        parts.append(tag("details", tag("summary", "Other measures"), _figures(later), class_="more"))
    return join(parts)


def _figures(plots: Sequence[tuple[Measure, Html]]) -> Html:
    shown = (tag("figure", tag("figcaption", measure.title), plot) for measure, plot in plots)
    return tag("div", *shown, class_="plots")


def _groups(figures: Figures) -> Html | None:
    tables = [group_table(figures, prefix, f"By {prefix}") for prefix in figures.prefixes()]
    shown = [one for one in tables if one is not None]
    return join(shown) if shown else None


def _extremes(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> Html | None:
    others = [measure for measure in figures.measures if measure not in figures.main]
    blocks = extremes(figures, cases, thumbnails, figures.main)
    later = extremes(figures, cases, thumbnails, others)
    if not blocks:
        blocks, later = later, []
    if not blocks:
        return None
    more = tag("details", tag("summary", "Other measures"), *later, class_="more") if later else ""
    note = tag("p", "Each is a link to its place among the pictures.", class_="note")
    return join([note, *blocks, more])


def _pictures(figures: Figures, cases: Cases, thumbnails: Thumbnails) -> Html | None:
    if not cases.shown:
        return None
    boxes = galleries(figures, cases, thumbnails)
    said = [f"{len(cases.shown):,} of {cases.total:,} pictures, at most {thumbnails.side} pixels wide and high."]
    if len(cases.shown) < cases.total:
        said.append("They were chosen evenly, and the best and worst added.")
    legend = " \u00b7 ".join(measure.title for measure in captioned(figures))
    if legend:
        said.append(f"Under each: {legend}.")
    if thumbnails.num_missing:
        said.append(f"{thumbnails.num_missing:,} files were not found or could not be read.")
    if thumbnails.num_not_given:
        said.append("The inputs are not shown: kg eval report --data FOLDER says where they are.")
    note = tag("p", " ".join(said), class_="note")
    return join([note, Html(_asset("filter.html")) if len(boxes) > 1 else "", *boxes])


def _protocol(figures: Figures) -> Html:
    first = figures.runs[0].scores
    notes = list(dict.fromkeys(note for run in figures.runs for note in run.scores.notes))
    same = _beside("Of drawing and scoring", [{"suite": first.suite, **dict(flatten(first.protocol))}])
    names = [run.name for run in figures.runs]
    method = _beside("Method", [dict(flatten(run.scores.method)) for run in figures.runs], names)
    versions = _beside("Versions", [dict(run.scores.versions) for run in figures.runs], names)
    listed = [tag("h3", "Notes"), tag("ul", *(tag("li", note) for note in notes))] if notes else []
    return tag("div", same, method, versions, *listed, class_="facts")


def _beside(caption: str, facts: Sequence[dict[str, str]], names: Sequence[str] = ()) -> Html:
    """Facts in a table: those of the runs, where they are named, in columns."""
    keys = dict.fromkeys(key for one in facts for key in one)
    rows = (
        tag("tr", tag("th", key, scope="row"), *(tag("td", one.get(key, ""), class_="text") for one in facts))
        for key in keys
    )
    heads = tag("tr", tag("td"), *(tag("th", name, scope="col", class_="text") for name in names))
    head = [tag("thead", heads)] if len(names) > 1 else []
    inner = tag("table", tag("caption", caption), *head, tag("tbody", *rows))
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")

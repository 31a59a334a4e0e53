"""Tables of scores with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from markupsafe import Markup

from kgcli.evaluation.report.page.cases import has_subjects
from kgcli.evaluation.report.page.templates import html
from kgcli.evaluation.scores import ALL, Figure, Measure

if TYPE_CHECKING:
    from kgcli.evaluation.report.compare import Comparison, ScoredRun

DASH, MINUS, TIMES = "\u2013", "\u2212", "\u00b7"
DECIMALS = ((0.05, 5), (2.0, 3), (100.0, 2))  # largest value below: digits after the point
ROWS = {
    "copy-input": "the input returned as the output",
    "oracle": "real images of a subject against each other",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The scores of all runs, by run, measure, row and group."""

    runs: tuple[ScoredRun, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures with a score, primary ones first."""
        held = {figure.measure for run in self.runs for figure in run.scores.figures}
        found = (measure for measure in self.runs[0].scores.measures if measure.name in held)
        return tuple(sorted(found, key=lambda measure: not measure.primary))

    @cached_property
    def by_subject(self) -> bool:
        """True if the suite is one of subjects."""
        return has_subjects(self.runs)

    @cached_property
    def _found(self) -> dict[tuple[int, str, str, str], Figure]:
        held = ((at, one) for at, run in enumerate(self.runs) for one in run.scores.figures)
        return {(at, one.measure, one.row, one.group): one for at, one in held}

    @property
    def main(self) -> tuple[Measure, ...]:
        """The primary measures; all if none is primary."""
        return tuple(measure for measure in self.measures if measure.primary) or self.measures

    def find(self, run: int, measure: str, row: str = "method", group: str = ALL) -> Figure | None:
        """Find one score, or None."""
        return self._found.get((run, measure, row, group))

    def groups(self, prefix: str) -> list[str]:
        """Return the groups of a prefix such as `subject:`, in the order of the first run that has them."""
        if prefix == "subject:" and not self.by_subject:
            return []
        found = (figure.group for run in self.runs for figure in run.scores.figures)
        return list(dict.fromkeys(group for group in found if group.startswith(prefix)))

    def prefixes(self) -> list[str]:
        """Return the grouping keys other than subject: category, kind ..."""
        found = (figure.group.partition(":") for run in self.runs for figure in run.scores.figures)
        return list(dict.fromkeys(prefix for prefix, colon, _ in found if colon and prefix != "subject"))

    def decimals(self, measure: str) -> int:
        """Return the number of decimals of a measure."""
        values = [abs(one.value) for run in self.runs for one in run.scores.figures if one.measure == measure]
        return next((digits for limit, digits in DECIMALS if max(values, default=0.0) < limit), 1)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Format a number with a typographic minus."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, decimals: int, sign: bool = False) -> str:
    """Format an interval, or return an empty string."""
    if low is None or high is None:
        return ""
    between = "to" if sign else DASH
    return f"{number(low, decimals, sign)} {between} {number(high, decimals, sign)}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: a head of its row, or a number, an interval or words."""

    text: str = ""
    head: bool = False
    run: int | None = None  # its mark precedes the text
    link: str = ""  # id of an element
    note: str = ""
    css: str = ""
    sort: str | None = None
    value: str | None = None
    value_css: str = "v"
    interval: str | None = None


Row = tuple[str, list[Cell]]  # class and cells


def results_table(figures: Figures, measures: Sequence[Measure], caption: str) -> Markup:
    """Tabulate measures in columns, each run's method and the reference rows in rows."""
    rows: list[Row] = [
        ("method", [_run_head(figures, run), *(_cell(figures, run, one) for one in measures)])
        for run in range(len(figures.runs))
    ]
    for row, runs in _reference_rows(figures):
        shown = f"{row} ({figures.runs[runs[0]].name})" if len(runs) < len(figures.runs) else row
        head = Cell(head=True, text=shown, note=ROWS.get(row, ""))
        rows.append(("", [head, *(_cell(figures, runs[0], one, row) for one in measures)]))
    return table(["Method", *measures], rows, caption)


def group_table(figures: Figures, prefix: str, caption: str, links: dict[str, str] | None = None) -> Markup | None:
    """Tabulate measures in columns, groups (and runs) in rows; None if there are no such groups."""
    groups = figures.groups(f"{prefix}:")
    measures = [one for one in figures.main if any(figures.find(0, one.name, group=group) for group in groups)]
    if not measures:
        return None
    several = len(figures.runs) > 1
    rows: list[Row] = []
    for group in groups:
        name = group.partition(":")[2]
        label = Cell(head=True, text=name, link=(links or {}).get(name, ""))
        for run in range(len(figures.runs)):
            heads = [label, *([_run_head(figures, run)] if several else [])]
            rows.append(("", [*heads, *(_cell(figures, run, one, group=group) for one in measures)]))
    titles = [prefix.capitalize(), *(["Run"] if several else [])]
    return table([*titles, *measures], rows, caption, num_texts=len(titles))


def difference_table(comparison: Comparison, figures: Figures) -> Markup | None:
    """Tabulate paired differences from the first run; None if there are none."""
    titles = {measure.name: measure for measure in comparison.measures}
    places = {run.name: _run_head(figures, at) for at, run in enumerate(figures.runs)}
    rows: list[Row] = []
    for one in comparison.differences:
        digits = figures.decimals(one.measure) + 1
        verdict = _verdict(one.value, titles[one.measure].higher_is_better) if one.clear else "not clear"
        cells = [Cell(sort=repr(one.value), value=number(one.value, digits, sign=True))]
        cells.append(Cell(css="ci", text=interval(one.low, one.high, digits, sign=True)))
        cells.append(Cell(css="ci", text=interval(one.bootstrap_low, one.bootstrap_high, digits, sign=True)))
        cells.append(Cell(css=verdict.replace(" ", "-"), text=verdict))
        cells += [Cell(sort=repr(count), text=f"{count:,}") for count in (one.num_clusters, one.num_pictures)]
        rows.append(("", [Cell(head=True, text=titles[one.measure].title), places[one.run], *cells]))
    heads = ["Measure", "Run", "Difference", "95 % t", "95 % bootstrap", "Verdict", "Subjects", "Images"]
    caption = f"Differences from {comparison.runs[0].name}, paired on subjects"
    return table(heads, rows, caption, num_texts=2) if rows else None


def full_table(figures: Figures) -> Markup:
    """Tabulate every score with both intervals and its counts."""
    titles = {measure.name: measure.title for measure in figures.measures}
    rows: list[Row] = []
    for run in figures.runs:
        for one in run.scores.figures:
            if one.group.startswith("subject:") and not figures.by_subject:
                continue
            digits = figures.decimals(one.measure) + 1
            texts = (run.name, titles.get(one.measure, one.measure), one.row, one.group)
            cells = [Cell(css="text", text=text) for text in texts]
            cells.append(Cell(sort=repr(one.value), text=number(one.value, digits)))
            cells.append(Cell(css="ci", text=interval(one.low, one.high, digits)))
            cells.append(Cell(css="ci", text=interval(one.bootstrap_low, one.bootstrap_high, digits)))
            cells += [Cell(sort=repr(count), text=f"{count:,}") for count in (one.num_subjects, one.num_pictures)]
            rows.append(("", cells))
    heads = ["Run", "Measure", "Row", "Group", "Value", "95 % t", "95 % bootstrap", "Subjects", "Images"]
    return table(heads, rows, f"All {len(rows):,} scores", num_texts=4)


def table(heads: Sequence[str | Measure], rows: Sequence[Row], caption: str, num_texts: int = 1) -> Markup:
    """Make a table sortable by its headings; the first `num_texts` columns hold text."""
    titles = [(*_head(head), at < num_texts) for at, head in enumerate(heads)]
    return html("table", caption=caption, heads=titles, rows=rows)


def _head(head: str | Measure) -> tuple[str, str]:
    if isinstance(head, str):
        return head, ""
    return head.title, "higher is better" if head.higher_is_better else "lower is better"


def _cell(figures: Figures, run: int, measure: Measure, row: str = "method", group: str = ALL) -> Cell:
    figure = figures.find(run, measure.name, row, group)
    if figure is None:
        return Cell(sort="", value=DASH, value_css="none")
    digits = figures.decimals(measure.name)
    known = figure.bounds
    shown = None if known is None else interval(*known, digits)
    return Cell(sort=repr(figure.value), value=number(figure.value, digits), interval=shown)


def _run_head(figures: Figures, run: int) -> Cell:
    return Cell(head=True, run=run, text=figures.runs[run].name)


def _reference_rows(figures: Figures) -> list[tuple[str, list[int]]]:
    """Return rows other than the method's, once if all runs agree on it, else once per run."""
    names = dict.fromkeys(one.row for run in figures.runs for one in run.scores.figures if one.row != "method")
    rows = []
    for name in names:
        held = [[one for one in run.scores.figures if one.row == name] for run in figures.runs]
        if all(one == held[0] for one in held):
            rows.append((name, list(range(len(figures.runs)))))
        else:
            rows += [(name, [run]) for run, some in enumerate(held) if some]
    return rows


def _verdict(value: float, higher_is_better: bool) -> str:
    return "better" if (value > 0) == higher_is_better else "worse"

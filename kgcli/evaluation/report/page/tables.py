"""Tables of figures with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from kgcli.evaluation.report.compare import Comparison, Run
from kgcli.evaluation.report.page.cases import has_subjects
from kgcli.evaluation.report.page.markup import Html, join, tag
from kgcli.evaluation.scores import ALL, Figure, Measure

DASH, MINUS, TIMES = "\u2013", "\u2212", "\u00b7"
DECIMALS = ((0.05, 5), (2.0, 3), (100.0, 2))  # largest value below: digits after the point
ROWS = {
    "copy-input": "the input handed back as the output",
    "oracle": "real pictures of a subject against each other",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of all runs, found by run, measure, row and group."""

    runs: tuple[Run, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those with a figure, primary ones first."""
        held = {figure.measure for run in self.runs for figure in run.scores.figures}
        found = (measure for measure in self.runs[0].scores.measures if measure.name in held)
        return tuple(sorted(found, key=lambda measure: not measure.primary))

    @cached_property
    def by_subject(self) -> bool:
        """Whether the suite is one of subjects."""
        return has_subjects(self.runs)

    @cached_property
    def _found(self) -> dict[tuple[int, str, str, str], Figure]:
        held = ((at, one) for at, run in enumerate(self.runs) for one in run.scores.figures)
        return {(at, one.measure, one.row, one.group): one for at, one in held}

    @property
    def main(self) -> tuple[Measure, ...]:
        """The primary ones; all where none is."""
        return tuple(measure for measure in self.measures if measure.primary) or self.measures

    def find(self, run: int, measure: str, row: str = "method", group: str = ALL) -> Figure | None:
        """One figure, where there is one."""
        return self._found.get((run, measure, row, group))

    def groups(self, prefix: str) -> list[str]:
        """The groups of a prefix, as `subject:`, in the order of the first run that has them."""
        if prefix == "subject:" and not self.by_subject:
            return []
        found = (figure.group for run in self.runs for figure in run.scores.figures)
        return list(dict.fromkeys(group for group in found if group.startswith(prefix)))

    def prefixes(self) -> list[str]:
        """What pictures are grouped by, subjects apart: category, kind ..."""
        found = (figure.group.partition(":") for run in self.runs for figure in run.scores.figures)
        return list(dict.fromkeys(prefix for prefix, colon, _ in found if colon and prefix != "subject"))

    def decimals(self, measure: str) -> int:
        """Digits after the point that all numbers of a measure are shown with."""
        values = [abs(one.value) for run in self.runs for one in run.scores.figures if one.measure == measure]
        return next((digits for limit, digits in DECIMALS if max(values, default=0.0) < limit), 1)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a true minus."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, decimals: int, sign: bool = False) -> str:
    """An interval, or nothing."""
    if low is None or high is None:
        return ""
    between = "to" if sign else DASH
    return f"{number(low, decimals, sign)} {between} {number(high, decimals, sign)}"


def results_table(figures: Figures, measures: Sequence[Measure], caption: str) -> Html:
    """Measures in columns; each run's method and what it is compared with in rows."""
    rows = [
        tag("tr", _run_head(figures, run), *(_cell(figures, run, one) for one in measures), class_="method")
        for run in range(len(figures.runs))
    ]
    for row, runs in _reference_rows(figures):
        shown = f"{row} ({figures.runs[runs[0]].name})" if len(runs) < len(figures.runs) else row
        note = [tag("span", ROWS[row], class_="what")] if row in ROWS else []
        cells = (_cell(figures, runs[0], one, row) for one in measures)
        rows.append(tag("tr", tag("th", shown, *note, scope="row"), *cells))
    return table(["Method", *measures], rows, caption)


def group_table(figures: Figures, prefix: str, caption: str, links: dict[str, str] | None = None) -> Html | None:
    """Measures in columns, groups (and runs) in rows; None where there are no such groups."""
    groups = figures.groups(f"{prefix}:")
    measures = [one for one in figures.main if any(figures.find(0, one.name, group=group) for group in groups)]
    if not measures:
        return None
    several = len(figures.runs) > 1
    rows = []
    for group in groups:
        name = group.partition(":")[2]
        label = tag("a", name, href=f"#{links[name]}") if links and name in links else name
        for run in range(len(figures.runs)):
            heads: list[str] = [tag("th", label, scope="row"), *([_run_head(figures, run)] if several else [])]
            rows.append(tag("tr", *heads, *(_cell(figures, run, one, group=group) for one in measures)))
    heads = [prefix.capitalize(), *(["Run"] if several else [])]
    return table([*heads, *measures], rows, caption, num_texts=len(heads))


def difference_table(comparison: Comparison, figures: Figures) -> Html | None:
    """Paired differences from the first run; None where there are none."""
    titles = {measure.name: measure for measure in comparison.measures}
    places = {run.name: _run_head(figures, at) for at, run in enumerate(figures.runs)}
    rows = []
    for one in comparison.differences:
        digits = figures.decimals(one.measure) + 1
        t = interval(one.low, one.high, digits, sign=True)
        b = interval(one.bootstrap_low, one.bootstrap_high, digits, sign=True)
        verdict = _verdict(one.value, titles[one.measure].higher_is_better) if one.clear else "not clear"
        cells = [_sorted_cell(one.value, tag("span", number(one.value, digits, sign=True), class_="v"))]
        cells += [tag("td", shown, class_="ci") for shown in (t, b)]
        cells.append(tag("td", verdict, class_=verdict.replace(" ", "-")))
        cells += [_sorted_cell(count, f"{count:,}") for count in (one.num_clusters, one.num_pictures)]
        rows.append(tag("tr", tag("th", titles[one.measure].title, scope="row"), places[one.run], *cells))
    heads = ["Measure", "Run", "Difference", "95 % t", "95 % bootstrap", "Reading", "Subjects", "Pictures"]
    caption = f"Differences from {comparison.runs[0].name}, paired on subjects"
    return table(heads, rows, caption, num_texts=2) if rows else None


def full_table(figures: Figures) -> Html:
    """Every figure with both intervals and its counts."""
    titles = {measure.name: measure.title for measure in figures.measures}
    rows = []
    for run in figures.runs:
        for one in run.scores.figures:
            if one.group.startswith("subject:") and not figures.by_subject:
                continue
            digits = figures.decimals(one.measure) + 1
            texts = (run.name, titles.get(one.measure, one.measure), one.row, one.group)
            rows.append(
                tag(
                    "tr",
                    *(tag("td", text, class_="text") for text in texts),
                    _sorted_cell(one.value, number(one.value, digits)),
                    tag("td", interval(one.low, one.high, digits), class_="ci"),
                    tag("td", interval(one.bootstrap_low, one.bootstrap_high, digits), class_="ci"),
                    *(_sorted_cell(count, f"{count:,}") for count in (one.num_subjects, one.num_pictures)),
                )
            )
    heads = ["Run", "Measure", "Row", "Group", "Value", "95 % t", "95 % bootstrap", "Subjects", "Pictures"]
    return table(heads, rows, f"All {len(rows):,} figures", num_texts=4)


def table(heads: Sequence[str | Measure], rows: Iterable[Html], caption: str, num_texts: int = 1) -> Html:
    """A table whose columns are sorted by their heads; the first `num_texts` hold words."""
    cells = [
        tag("th", tag("button", *_head(head), type="button"), scope="col", class_="text" if at < num_texts else None)
        for at, head in enumerate(heads)
    ]
    head = tag("thead", tag("tr", *cells))
    inner = tag("table", tag("caption", caption), head, tag("tbody", *rows))
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _head(head: str | Measure) -> list[str]:
    if isinstance(head, str):
        return [head]
    arrow = "higher is better" if head.higher_is_better else "lower is better"
    return [head.title, tag("span", arrow, class_="what")]


def _cell(figures: Figures, run: int, measure: Measure, row: str = "method", group: str = ALL) -> Html:
    figure = figures.find(run, measure.name, row, group)
    if figure is None:
        return tag("td", tag("span", DASH, class_="none"), data_sort="")
    digits = figures.decimals(measure.name)
    known = figure.bounds
    shown = [tag("span", number(figure.value, digits), class_="v")]
    if known is not None:
        shown.append(tag("span", interval(*known, digits), class_="ci"))
    return _sorted_cell(figure.value, join(shown))


def _sorted_cell(value: float, shown: str) -> Html:
    return tag("td", shown, data_sort=repr(value))


def _run_head(figures: Figures, run: int) -> Html:
    return tag("th", run_mark(run), figures.runs[run].name, scope="row")


def run_mark(run: int) -> Html:
    """The coloured dot of a run."""
    return tag("span", class_=f"mark run-{run % 6}", aria_hidden="true")


def _reference_rows(figures: Figures) -> list[tuple[str, list[int]]]:
    """Rows other than the method's, each once where all runs agree on it, else once for each run."""
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

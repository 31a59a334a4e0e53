"""Plots of scores: a dot per subject with its interval and the overall mean, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from kgcli.evaluation.metrics.intervals import cluster_mean
from kgcli.evaluation.report.compare import Key, cluster_means, values_of
from kgcli.evaluation.report.page.tables import Figures, interval, number
from kgcli.evaluation.report.page.templates import html
from kgcli.evaluation.scores import Measure, range_of

WIDTH, LABELS, RIGHT, TOP, BOTTOM = 460, 128, 14, 8, 26  # pixels of the plot
ROW, RUN_STEP = 17, 7  # height of a subject, and what each further run adds
NUM_TICKS = 4
MAX_LABEL = 20  # characters
NUM_BINS = 24


@dataclass(frozen=True)
class Dot:
    """One subject of one run."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """A map from values to pixels."""

    low: float
    high: float
    left: int = LABELS  # pixels

    def at(self, value: float) -> float:
        """Return pixels from the left."""
        fraction = (value - self.low) / (self.high - self.low)
        return round(self.left + fraction * (WIDTH - self.left - RIGHT), 1)


def subject_plot(figures: Figures, measure: Measure, links: dict[str, str]) -> Markup | None:
    """Plot subjects in rows, best of the first run first; None if the measure has no subjects."""
    dots = [_dots(figures, run, measure.name) for run in range(len(figures.runs))]
    names = sorted({name for one in dots for name in one}, key=lambda name: _rank(dots, name, measure))
    if not names:
        return None
    axis = _axis([end for one in dots for dot in one.values() for end in (dot.low, dot.high)])
    digits = figures.decimals(measure.name)
    height = ROW + RUN_STEP * (len(dots) - 1)
    bottom = TOP + height * len(names)
    parts: list[Markup] = []
    for place, name in enumerate(names):
        parts.append(_label(name, TOP + height * (place + 0.5), links.get(name)))
        for run, found in enumerate(dots):
            if name in found:
                y = TOP + height * place + ROW / 2 + RUN_STEP * run
                title = f"{name}, {figures.runs[run].name}: {number(found[name].value, digits)}"
                parts.append(_dot(found[name], axis, y, run, title, digits))
    means = _means(figures, measure.name, axis)
    return _svg(axis, bottom, means, parts, f"{measure.title} of each subject")


def histogram(figures: Figures, measure: Measure) -> Markup | None:
    """Plot the distribution of the values of single images; None if there are none."""
    values = [list(values_of(measure.name, run.scores.pictures).values()) for run in figures.runs]
    every = [value for one in values for value in one]
    if len(every) < 2 or min(every) == max(every):
        return None
    axis = _axis(every, left=RIGHT)
    edges = np.linspace(min(every), max(every), NUM_BINS + 1)
    counts = [np.histogram(one, edges)[0] / max(len(one), 1) for one in values]
    scale = 120 / max(float(count.max()) for count in counts)
    bottom = TOP + 124
    parts: list[Markup] = []
    for run, fractions in enumerate(counts):
        steps = [f"M{axis.at(edges[0])},{bottom}"]
        for at, fraction in enumerate(fractions):
            steps.append(f"V{bottom - scale * fraction:.1f}H{axis.at(edges[at + 1])}")
        title = f"{figures.runs[run].name}: {len(values[run]):,} images"
        parts.append(html("steps", run=run, title=title, path="".join([*steps, f"V{bottom}Z"])))
    return _svg(axis, bottom, [], parts, f"{measure.title}: distribution over images")


def _dots(figures: Figures, run: int, measure: str) -> dict[str, Dot]:
    """Return scores of subjects; an interval that scoring lacks is computed over the subject's prompts."""
    images = values_of(measure, figures.runs[run].scores.pictures)
    prompts: dict[str, dict[Key, float]] = {}
    for (subject, prompt, image, path), value in images.items():
        prompts.setdefault(subject, {})["", prompt, image, path] = value
    dots = {}
    for group in figures.groups("subject:"):
        figure = figures.find(run, measure, group=group)
        if figure is None:
            continue
        name = group.partition(":")[2]
        low, high = figure.bounds or _over_prompts(prompts.get(name, {}), measure) or (figure.value, figure.value)
        dots[name] = Dot(figure.value, low, high)
    return dots


def _over_prompts(values: dict[Key, float], measure: str) -> tuple[float, float] | None:
    if not values:
        return None
    mean = cluster_mean(list(cluster_means(values).values()), range_of(measure))
    return None if mean.low is None or mean.high is None else (mean.low, mean.high)


def _rank(dots: Sequence[dict[str, Dot]], name: str, measure: Measure) -> tuple[float, str]:
    value = next(one[name].value for one in dots if name in one)
    return (-value if measure.higher_is_better else value), name


def _axis(values: Sequence[float], left: int = LABELS) -> Axis:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(low - margin, high + margin, left)


def _ticks(axis: Axis) -> list[float]:
    rough = (axis.high - axis.low) / NUM_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [step * n for n in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]


def _means(figures: Figures, measure: str, axis: Axis) -> list[tuple[int, float, tuple[float, float] | None]]:
    """Return (run, mean, band) of each run; band is the start and width of its interval."""
    found = []
    for run in range(len(figures.runs)):
        figure = figures.find(run, measure)
        if figure is None or not axis.low <= figure.value <= axis.high:
            continue
        known, band = figure.bounds, None
        if known is not None:
            left, right = (axis.at(min(max(end, axis.low), axis.high)) for end in known)
            band = left, round(right - left, 1)
        found.append((run, axis.at(figure.value), band))
    return found


def _label(name: str, y: float, link: str | None) -> Markup:
    short = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "\u2026"
    return html("label", name=name, short=short, x=LABELS - 10, y=y + 4, link=link)


def _dot(dot: Dot, axis: Axis, y: float, run: int, title: str, digits: int) -> Markup:
    label = f"{title} ({interval(dot.low, dot.high, digits)})" if dot.low < dot.high else title
    return html("dot", run=run, title=label, low=axis.at(dot.low), high=axis.at(dot.high), at=axis.at(dot.value), y=y)


def _svg(
    axis: Axis,
    bottom: float,
    means: Sequence[tuple[int, float, tuple[float, float] | None]],
    parts: Sequence[Markup],
    label: str,
) -> Markup:
    return html(
        "svg",
        label=label,
        width=WIDTH,
        height=f"{bottom + BOTTOM:g}",
        top=TOP,
        bottom=bottom,
        ticks=[(axis.at(tick), f"{round(tick, 6):g}") for tick in _ticks(axis)],
        means=means,
        content=Markup("").join(parts),
    )

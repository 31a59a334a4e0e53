"""Comparison of runs: the same measures, and paired differences on the same images."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.metrics.intervals import paired, subject_means
from kgcli.evaluation.plan import PLAN, SCORES
from kgcli.evaluation.report.tables import aligned
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import Figure, ImageScore, Measure, Scores, range_of

DIFFERENCES_NAMED = 3  # keys in the error message
# Subject, prompt, image index, and the image's path without its suffix: an image of several subjects appears once for
# each, and a subject may be in several images of one prompt.
Key = tuple[str, int, int, str]


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A scored run and its display name."""

    name: str
    folder: Path
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of a run from the first, in one measure, on the same images; 95 % intervals over clusters."""

    measure: str
    run: str
    value: float
    num_clusters: int  # subjects; prompts where the suite has none
    num_pictures: int
    low: float | None = None  # t interval over the clusters' differences
    high: float | None = None
    bootstrap_low: float | None = None  # clusters resampled
    bootstrap_high: float | None = None

    @property
    def clear(self) -> bool:
        """True if both intervals exclude 0."""
        bounds = (self.low, self.high, self.bootstrap_low, self.bootstrap_high)
        known = [bound for bound in bounds if bound is not None]
        return bool(known) and (min(known) > 0 or max(known) < 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs of one protocol; the first is the reference."""

    runs: tuple[ScoredRun, ...]
    measures: tuple[Measure, ...]
    differences: tuple[Difference, ...]

    def find(self, measure: str, run: str) -> Difference | None:
        """Find one difference, or None."""
        return next((one for one in self.differences if (one.measure, one.run) == (measure, run)), None)

    def to_json(self) -> str:
        """Return the comparison as one JSON object."""
        first = self.runs[0].scores
        figures = [
            {"run": run.name, **dataclasses.asdict(figure)}
            for run in self.runs
            for figure in overall(run.scores).values()
        ]
        return json.dumps(
            {
                "suite": first.suite,
                "protocol": first.protocol,
                "runs": [{"name": run.name, "method": run.scores.method} for run in self.runs],
                "figures": figures,
                "differences": [{**dataclasses.asdict(one), "clear": one.clear} for one in self.differences],
            },
            indent=2,
            ensure_ascii=False,
        )

    def __str__(self) -> str:
        """Return two tables: the measures of each run, and the differences from the first."""
        return "\n".join([*_figure_lines(self), "", *_difference_lines(self)])


def open_runs(paths: Sequence[Path]) -> tuple[ScoredRun, ...]:
    """Open scored runs, named by their folders. Raises: MissingError; UsageError if protocols differ."""
    runs = []
    for path, name in zip(paths, _names(paths), strict=True):
        _check_scored(path)
        folder = path if path.is_dir() else path.parent
        runs.append(ScoredRun(name=name, folder=folder, scores=Scores.read(path)))
    for run in runs[1:]:
        check_comparable(runs[0], run)
    return tuple(runs)


def check_comparable(first: ScoredRun, other: ScoredRun) -> None:
    """Check that two runs share suite, protocol and set of images. Raises: UsageError with the differences."""
    if first.scores.suite != other.scores.suite:
        differing = [f"suite {first.scores.suite} against {other.scores.suite}"]
    else:
        one, two = (dict(flatten(run.scores.protocol)) for run in (first, other))
        keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
        differing = [f"{key} {one.get(key, 'absent')} against {two.get(key, 'absent')}" for key in keys]
    if differing:
        more = len(differing) - DIFFERENCES_NAMED
        named = "; ".join(differing[:DIFFERENCES_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise UsageError(f"{first.name} and {other.name} have different protocols and cannot be compared: {named}")
    images = [{_key(one) for one in run.scores.pictures} for run in (first, other)]
    if images[0] != images[1]:
        raise UsageError(
            f"{first.name} and {other.name} have scores of different images ({len(images[0])} and {len(images[1])}, "
            f"{len(images[0] & images[1])} in both) under one protocol; score them again"
        )


def compare(runs: Sequence[ScoredRun]) -> Comparison:
    """Compare runs of one protocol with the first."""
    differences = []
    for measure in runs[0].scores.measures:
        for run in runs[1:]:
            difference = _difference(measure.name, runs[0].scores, run)
            if difference is not None:
                differences.append(difference)
    return Comparison(runs=tuple(runs), measures=runs[0].scores.measures, differences=tuple(differences))


def overall(scores: Scores) -> dict[str, Figure]:
    """Return the method's scores over all images, by measure."""
    order = [measure.name for measure in scores.measures]
    found = {one.measure: one for one in scores.figures if (one.row, one.group) == ("method", "all")}
    return {name: found[name] for name in order if name in found}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested values as text under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cluster_means(values: Mapping[Key, float]) -> dict[str, float]:
    """Average over images, then prompts, of each subject; of each prompt if there are no subjects."""
    return subject_means((subject or f"prompt {prompt}", prompt, one) for (subject, prompt, *_), one in values.items())


def values_of(measure: str, images: Iterable[ImageScore]) -> dict[Key, float]:
    """Return one measure of images, by key."""
    return {_key(one): one.values[measure] for one in images if measure in one.values}


def _key(one: ImageScore) -> Key:
    return one.subject, one.prompt, one.image, PurePosixPath(one.path).with_suffix("").as_posix()


def _difference(measure: str, first: Scores, run: ScoredRun) -> Difference | None:
    """Return the difference; None if no image has this measure in both runs, as for FID."""
    before, after = values_of(measure, first.pictures), values_of(measure, run.scores.pictures)
    both = before.keys() & after.keys()
    if not both:
        return None
    of_first, of_other = (cluster_means({key: one[key] for key in sorted(both)}) for one in (before, after))
    mean = paired(of_other, of_first, range_of(measure))
    return Difference(
        measure=measure,
        run=run.name,
        value=mean.value,
        num_clusters=mean.num,
        num_pictures=len({path for *_, path in both}),
        low=mean.low,
        high=mean.high,
        bootstrap_low=mean.bootstrap_low,
        bootstrap_high=mean.bootstrap_high,
    )


def _check_scored(path: Path) -> None:
    if not path.exists():
        raise MissingError(f"{path} does not exist; give the folder of a run")
    if path.is_dir() and not (path / SCORES).is_file():
        if not (path / PLAN).is_file():
            raise MissingError(f"{path} is not a run folder: it has neither {PLAN} nor {SCORES}")
        command = "coco" if RunFolder.open(path).plan.suite.endswith("coco") else "dreambench"
        raise MissingError(f"{path} is not scored yet; score it with kg eval {command} first")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return folder names, or whole paths where names repeat. Raises: UsageError for a run given twice."""
    folders = [path if path.name != SCORES else path.parent for path in (one.resolve() for one in paths)]
    if len(set(folders)) < len(folders):
        twice = next(str(path) for path, folder in zip(paths, folders, strict=True) if folders.count(folder) > 1)
        raise UsageError(f"{twice} is given twice; give different runs")
    names = [os.fsencode(folder.name).decode("utf-8", "replace") for folder in folders]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _figure_lines(comparison: Comparison) -> list[str]:
    figures = {run.name: overall(run.scores) for run in comparison.runs}
    shown = [one for one in comparison.measures if any(one.name in found for found in figures.values())]
    rows = [["measure [95 % interval]", *figures]]
    for measure in shown:
        rows.append([_title(measure), *(_cell(found.get(measure.name)) for found in figures.values())])
    return [aligned(rows)]


def _difference_lines(comparison: Comparison) -> list[str]:
    rows = [["measure", "run", "difference", "t interval", "bootstrap", "clusters", "images"]]
    titles = {measure.name: _title(measure) for measure in comparison.measures}
    for one in comparison.differences:
        mark = " *" if one.clear else ""
        intervals = (_interval(one.low, one.high), _interval(one.bootstrap_low, one.bootstrap_high))
        counts = (str(one.num_clusters), str(one.num_pictures))
        rows.append([titles[one.measure], one.run, f"{one.value:+.4f}{mark}", *intervals, *counts])
    if len(rows) == 1:
        return ["the runs have no per-image measure in common: no paired differences"]
    first = comparison.runs[0].name
    heading = f"differences from {first}, paired on subjects (* both intervals exclude 0)"
    return [heading, aligned(rows)]


def _title(measure: Measure) -> str:
    return measure.title + ("" if measure.higher_is_better else " (lower is better)")


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = figure.bounds or (None, None)
    return f"{figure.value:.4f} {_interval(low, high)}".rstrip()


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"

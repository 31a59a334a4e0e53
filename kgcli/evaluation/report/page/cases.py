"""The images of a page: all of them up to a limit, else an evenly spaced selection plus the best and worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kgcli.errors import MissingError
from kgcli.evaluation.report.page.thumbnails import NOT_GIVEN
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import ImageScore, Measure
from kgcli.files import check_inside

if TYPE_CHECKING:
    from kgcli.evaluation.report.compare import ScoredRun

MAX_IMAGES = 6000  # of one page, all runs together; about 25 MB
NUM_EXTREMES = 4  # best and as many worst, of each measure and run
MAX_SUBJECTS = 400  # more are captions, not subjects
BLOCK = 200  # images of captions shown together


@dataclass(frozen=True, kw_only=True)
class ShownCase:
    """One image of one run, with its place in the page."""

    run: int
    subject: int
    number: int  # in the run
    score: ImageScore
    input_text: str  # of the method, if the run has it
    file: Path
    inputs: tuple[Path, ...]

    @property
    def id(self) -> str:
        """Id of its element; the script parses the subject from it."""
        return f"case-{self.subject}-{self.run}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases of all runs."""

    shown: tuple[ShownCase, ...]
    extremes: dict[tuple[str, int], tuple[tuple[ShownCase, ...], tuple[ShownCase, ...]]]  # measure, run: best and worst
    subjects: tuple[str, ...]  # or names of blocks of captions
    total: int


def has_subjects(runs: Sequence[ScoredRun]) -> bool:
    """Return whether images are of subjects shared by two prompts or more, rather than of single captions."""
    prompts = {(score.subject, score.prompt) for run in runs for score in run.scores.pictures}
    subjects = {subject for subject, _ in prompts}
    return 2 * len(subjects) <= len(prompts) and len(subjects) <= MAX_SUBJECTS and subjects != {""}


def choose(
    runs: Sequence[ScoredRun], folders: Sequence[Path], limit: int = MAX_IMAGES, data: Path | None = None
) -> Cases:
    """Choose the cases of a page. `folders` hold the images of each run, `data` the inputs.

    Raises: MissingError if a run's images are links out of its folder.
    """
    most = max(len(run.scores.pictures) for run in runs)
    step = max(math.ceil(most * len(runs) / limit), 1)
    subjects = _subjects(runs) if has_subjects(runs) else _blocks(most, BLOCK * step)
    shown: list[ShownCase] = []
    extremes = {}
    for index, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        check_inside(folder, (score.path for score in run.scores.pictures))
        cases = _all(index, run, folder, subjects, None if has_subjects(runs) else BLOCK * step, data)
        kept = {case.number for case in cases[::step]}
        for measure in run.scores.measures:
            best, worst = _extremes(measure, cases)
            if best:
                extremes[measure.name, index] = best, worst
                kept |= {case.number for case in (*best, *worst)}
        shown += [case for case in cases if case.number in kept]
    total = sum(len(run.scores.pictures) for run in runs)
    return Cases(shown=tuple(shown), extremes=extremes, subjects=tuple(subjects), total=total)


def _subjects(runs: Sequence[ScoredRun]) -> list[str]:
    return list(dict.fromkeys(score.subject for run in runs for score in run.scores.pictures))


def _blocks(num_images: int, size: int) -> list[str]:
    starts = range(0, num_images, size)
    return [f"Images {start + 1:,} to {min(start + size, num_images):,}" for start in starts]


def _all(
    index: int, run: ScoredRun, folder: Path, subjects: Sequence[str], block: int | None, data: Path | None
) -> list[ShownCase]:
    texts = _input_texts(run.folder)
    places = {name: place for place, name in enumerate(subjects)}
    scores = sorted(
        run.scores.pictures, key=lambda one: (places.get(one.subject, 0), one.prompt, one.image, one.subject, one.path)
    )
    return [
        ShownCase(
            run=index,
            subject=number // block if block else places[score.subject],
            number=number,
            score=score,
            input_text=texts.get(score.path, ""),
            file=folder / score.path,
            inputs=tuple((data or NOT_GIVEN) / name for name in score.inputs),
        )
        for number, score in enumerate(scores)
    ]


def _input_texts(folder: Path) -> dict[str, str]:
    try:
        plan = RunFolder.open(folder).plan
    except MissingError:  # images of another program
        return {}
    return {item.path: item.input_text for item in plan.items}


def _extremes(measure: Measure, cases: Sequence[ShownCase]) -> tuple[tuple[ShownCase, ...], tuple[ShownCase, ...]]:
    """Return the best and the worst cases; none if there are too few."""
    scored = [case for case in cases if measure.name in case.score.values]
    num = min(NUM_EXTREMES, len(scored) // 2)
    sign = -1 if measure.higher_is_better else 1
    ordered = sorted(scored, key=lambda case: (sign * case.score.values[measure.name], case.number))
    return tuple(ordered[:num]), tuple(reversed(ordered[len(ordered) - num :]))

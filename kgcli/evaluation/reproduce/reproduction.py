"""One of the paper's tables at nano size: train what is missing, draw, score, and set it beside the paper's. No torch.

    OUT/<row>/seed<k>/   a benchmark run for each row and seed
    OUT/table.json       figures, intervals, order; equal runs give equal bytes
    OUT/compute.json     samples and minutes of training; minutes differ from machine to machine
    OUT/table.md         both, for people

Each step is taken up where it was left: training from its newest checkpoint, drawing and scoring as benchmarks are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kgcli.config import Recipe
from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.benchmarks.nano import NUM_CAPTIONS, check_captions
from kgcli.evaluation.benchmarks.nano import subjects as known_subjects
from kgcli.evaluation.plan import NUM_IMAGES, DreamBenchOptions
from kgcli.evaluation.reproduce.lineage import (
    Compute,
    compute_in_all,
    compute_of,
    decoder_of,
    pending,
    recipe_at,
    result_of,
)
from kgcli.evaluation.reproduce.paper import Row, Table
from kgcli.evaluation.scores import Scores

CAPTIONS = "nano-coco"  # the suite of captions; the other has subjects
LEARNING = ("textual-inversion", "dreambooth")  # methods with a setting `seed` of their own


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is asked for."""

    table: Table
    out: Path
    scale: str = "nano"
    runs: Path = Path("runs")
    rows: tuple[str, ...] = ()  # () is all
    num_seeds: int = 1  # of training and of noise
    num: int | None = None  # captions, where the suite has them
    num_images: int | None = None  # pictures for each prompt, where the suite has subjects
    subjects: tuple[str, ...] = ()  # () is all
    device: str = "auto"

    def __post_init__(self) -> None:
        known = [row.name for row in self.table.rows]
        for name in self.rows:
            if name not in known:
                raise UsageError(f"--rows: {self.table.name} has no row {name}; it has {', '.join(known)}")
        if self.num_seeds < 1:
            raise UsageError(f"--seeds is {self.num_seeds}; it must be at least 1")
        of_captions = self.table.suite == CAPTIONS
        if self.num is not None and not of_captions:
            raise UsageError(f"--num is of captions, {self.table.name} has subjects; give --num-images or --subjects")
        if of_captions and (self.num_images is not None or self.subjects):
            raise UsageError(f"{self.table.name} has captions, one picture each; give --num")
        # Now, for otherwise it is found after hours of training.
        if self.num is not None:
            check_captions(self.num)
        self.subject_ask(seed=0).check_subjects(known_subjects())

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows that are asked for."""
        return self.table.pick(self.rows)

    def subject_ask(self, seed: int) -> DreamBenchOptions:
        """What is asked for of a suite of subjects. Raises: UsageError."""
        num_images = NUM_IMAGES if self.num_images is None else self.num_images
        return DreamBenchOptions(seed=seed, num_images=num_images, subjects=self.subjects)

    def recipe(self, row: Row, seed: int) -> Recipe:
        """What makes a row's model. A row that is no model has none of its own, and the first seed's stands for it."""
        return recipe_at(row.recipe, self.scale, self.runs, seed if row.is_model else 0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark run: a row's pictures of one seed."""

    row: Row
    seed: int
    out: Path
    suite: str
    options: MethodOptions
    num: int  # captions
    ask: DreamBenchOptions  # where the suite has subjects


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What was found of a row: the scores of each seed, and what its training took."""

    row: Row
    scores: tuple[Scores, ...]
    own: Compute | None  # of the row's own training; None where it has none
    in_all: Compute | None  # with all that it stands on
    drawing_minutes: float  # with what a method learns of each subject; those of killed processes are not in it


Train = Callable[[Recipe], object]
MeasureRow = Callable[[Job], Scores]


def trainings(ask: Reproduction) -> list[Recipe]:
    """The recipes that have to run first, in order, each once. Raises: MissingError."""
    waiting: dict[str, Recipe] = {}
    for row in ask.chosen:
        for seed in range(ask.num_seeds):
            for recipe in pending(ask.recipe(row, seed), ask.scale, ask.runs):
                waiting.setdefault(recipe.output_dir, recipe)
    decoder = recipe_at("nano/base/unet", ask.scale, ask.runs)
    for recipe in pending(decoder, ask.scale, ask.runs):
        waiting.setdefault(recipe.output_dir, recipe)
    return list(waiting.values())


def jobs(ask: Reproduction) -> list[Job]:
    """The benchmark runs of all rows and seeds, in order."""
    return [_job(ask, row, seed) for row in ask.chosen for seed in range(ask.num_seeds)]


def reproduce(ask: Reproduction, train: Train, measure: MeasureRow) -> list[RowResult]:
    """Train what is missing, measure every row; what was done before is not done again."""
    for recipe in trainings(ask):
        train(recipe)
    scores: dict[str, list[Scores]] = {}
    for job in jobs(ask):
        scores.setdefault(job.row.name, []).append(measure(job))
    return [_result(ask, row, scores[row.name]) for row in ask.chosen]


def describe(ask: Reproduction) -> str:
    """What would be trained and drawn."""
    waiting = trainings(ask)
    lines = [f"{ask.table.title}: {len(ask.chosen)} rows, {ask.num_seeds} seed(s), suite {ask.table.suite}"]
    lines += [f"  train {one.output_dir}: {one.stage}, {one.steps} steps of {one.data.batch_size}" for one in waiting]
    lines += [f"  draw and score {job.out}: {job.row.method}" for job in jobs(ask)]
    return "\n".join(lines)


def _job(ask: Reproduction, row: Row, seed: int) -> Job:
    options = MethodOptions(device=ask.device, decoder=str(decoder_of(ask.scale, ask.runs)), offline=True)
    if row.method in ("kosmosg", "sd"):  # the latter has to be given a model, and does not ask it
        options = dataclasses.replace(options, model=str(result_of(ask.recipe(row, seed))))
    if row.method in LEARNING:
        options = dataclasses.replace(options, extra=(("seed", str(seed)),))
    return Job(
        row=row,
        seed=seed,
        out=_out(ask, row, seed),
        suite=ask.table.suite,
        options=options,
        num=NUM_CAPTIONS if ask.num is None else ask.num,
        ask=ask.subject_ask(seed),
    )


def _result(ask: Reproduction, row: Row, scores: Sequence[Scores]) -> RowResult:
    minutes = sum(_minutes(minutes_file(_out(ask, row, seed))) for seed in range(ask.num_seeds))
    if not row.is_model:
        return RowResult(row=row, scores=tuple(scores), own=None, in_all=None, drawing_minutes=minutes)
    runs = [Path(ask.recipe(row, seed).output_dir) for seed in range(ask.num_seeds)]
    return RowResult(
        row=row,
        scores=tuple(scores),
        own=compute_of(runs[0]),
        in_all=compute_in_all(runs[0]),
        drawing_minutes=minutes,
    )


def minutes_file(out: Path) -> Path:
    """Where the minutes of drawing a run are kept: beside it, for a run's own files hold no times."""
    return out.with_name(f"{out.name}-minutes.json")


def _minutes(path: Path) -> float:
    return float(json.loads(path.read_text("utf-8"))["minutes"]) if path.is_file() else 0.0


def _out(ask: Reproduction, row: Row, seed: int) -> Path:
    return ask.out / row.name / f"seed{seed}"

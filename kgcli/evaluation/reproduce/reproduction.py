"""One of the paper's tables at nano size: train missing models, generate, score, and compare with the paper.

    OUT/<row>/seed<k>/   a benchmark run for each row and seed
    OUT/table.json       scores, intervals, order; equal runs give equal bytes
    OUT/compute.json     samples and minutes of training; minutes differ from machine to machine
    OUT/table.md         both, as Markdown

Interrupted steps are resumed: training from its newest checkpoint, generation and scoring as in benchmarks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.benchmarks.nano import NUM_CAPTIONS, check_captions
from kgcli.evaluation.benchmarks.nano import subjects as known_subjects
from kgcli.evaluation.plan import NUM_IMAGES, DreamBenchOptions
from kgcli.evaluation.reproduce.lineage import (
    DECODER,
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
from kgcli.recipe import Recipe

CAPTIONS = "nano-coco"  # the suite of captions; the other has subjects
LEARNING = ("textual-inversion", "dreambooth")  # methods with a setting `seed` of their own


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Options of a reproduction."""

    table: Table
    out: Path
    scale: str = "nano"
    runs: Path = Path("runs")
    rows: tuple[str, ...] = ()  # () is all
    num_seeds: int = 1  # of training and of noise
    num: int | None = None  # captions, where the suite has them
    num_images: int | None = None  # images for each prompt, where the suite has subjects
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
            raise UsageError(
                f"--num is the number of captions and {self.table.name} has subjects; give --num-images or --subjects"
            )
        if of_captions and (self.num_images is not None or self.subjects):
            raise UsageError(f"{self.table.name} has captions, one image each; give --num")
        # Checked now, not after hours of training.
        if self.num is not None:
            check_captions(self.num)
        self.subject_options(seed=0).check_subjects(known_subjects())

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The chosen rows."""
        return self.table.pick(self.rows)

    def subject_options(self, seed: int) -> DreamBenchOptions:
        """Return the options of a subject suite. Raises: UsageError."""
        num_images = NUM_IMAGES if self.num_images is None else self.num_images
        return DreamBenchOptions(seed=seed, num_images=num_images, subjects=self.subjects)

    def recipe(self, row: Row, seed: int) -> Recipe:
        """Return the recipe of a row's model; a baseline has none and uses the first seed's."""
        return recipe_at(row.recipe, self.scale, self.runs, seed if row.is_model else 0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark run: a row's images of one seed."""

    row: Row
    seed: int
    out: Path
    suite: str
    options: MethodOptions
    num: int  # captions
    suite_options: DreamBenchOptions  # where the suite has subjects


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Result of a row: the scores of each seed and its training compute."""

    row: Row
    scores: tuple[Scores, ...]
    own: Compute | None  # of the row's own training, if any
    in_all: Compute | None  # with its dependencies
    generation_minutes: float  # with per-subject training; without those of killed processes


Train = Callable[[Recipe], object]
MeasureRow = Callable[[Job], Scores]


def trainings(options: Reproduction) -> list[Recipe]:
    """Return the recipes that have to run first, in order, each once. Raises: MissingError."""
    waiting: dict[str, Recipe] = {}
    for row in options.chosen:
        for seed in range(options.num_seeds):
            for recipe in pending(options.recipe(row, seed), options.scale, options.runs):
                waiting.setdefault(recipe.output_dir, recipe)
    decoder = recipe_at(DECODER, options.scale, options.runs)
    for recipe in pending(decoder, options.scale, options.runs):
        waiting.setdefault(recipe.output_dir, recipe)
    return list(waiting.values())


def jobs(options: Reproduction) -> list[Job]:
    """Return the benchmark runs of all rows and seeds, in order."""
    return [_job(options, row, seed) for row in options.chosen for seed in range(options.num_seeds)]


def reproduce(options: Reproduction, train: Train, measure: MeasureRow) -> list[RowResult]:
    """Train missing models and measure every row; finished work is reused."""
    for recipe in trainings(options):
        train(recipe)
    scores: dict[str, list[Scores]] = {}
    for job in jobs(options):
        scores.setdefault(job.row.name, []).append(measure(job))
    return [_result(options, row, scores[row.name]) for row in options.chosen]


def describe(options: Reproduction) -> str:
    """List the trainings and benchmark runs."""
    waiting = trainings(options)
    lines = [
        f"{options.table.title}: {len(options.chosen)} rows, {options.num_seeds} seed(s), suite {options.table.suite}"
    ]
    lines += [f"  train {one.output_dir}: {one.stage}, {one.steps} steps of {one.data.batch_size}" for one in waiting]
    lines += [f"  generate and score {job.out}: {job.row.method}" for job in jobs(options)]
    return "\n".join(lines)


def _job(options: Reproduction, row: Row, seed: int) -> Job:
    method = MethodOptions(device=options.device, decoder=str(decoder_of(options.scale, options.runs)), offline=True)
    if row.method in ("kosmosg", "sd"):  # sd needs a model folder too, but uses its decoder only
        method = dataclasses.replace(method, model=str(result_of(options.recipe(row, seed))))
    if row.method in LEARNING:
        method = dataclasses.replace(method, extra=(("seed", str(seed)),))
    return Job(
        row=row,
        seed=seed,
        out=_out(options, row, seed),
        suite=options.table.suite,
        options=method,
        num=NUM_CAPTIONS if options.num is None else options.num,
        suite_options=options.subject_options(seed),
    )


def _result(options: Reproduction, row: Row, scores: Sequence[Scores]) -> RowResult:
    minutes = sum(_minutes(minutes_file(_out(options, row, seed))) for seed in range(options.num_seeds))
    if not row.is_model:
        return RowResult(row=row, scores=tuple(scores), own=None, in_all=None, generation_minutes=minutes)
    runs = [Path(options.recipe(row, seed).output_dir) for seed in range(options.num_seeds)]
    return RowResult(
        row=row,
        scores=tuple(scores),
        own=compute_of(runs[0]),
        in_all=compute_in_all(runs[0]),
        generation_minutes=minutes,
    )


def minutes_file(out: Path) -> Path:
    """Return the file with a run's generation minutes: beside it, since run files hold no times."""
    return out.with_name(f"{out.name}-minutes.json")


def _minutes(path: Path) -> float:
    return float(json.loads(path.read_text("utf-8"))["minutes"]) if path.is_file() else 0.0


def _out(options: Reproduction, row: Row, seed: int) -> Path:
    return options.out / row.name / f"seed{seed}"

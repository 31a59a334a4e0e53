"""The nano suite: what a model of the nano world can do, on individuals no stage has seen.

Protocol: `cases` says what is asked and by what rule an individual is picked, `painters` who answers, `scoring` how
answers are judged. Beside the model stand true renders (`true`, the ceiling), those through the VAE (`vae`), true
renders of other individuals (`other`, the floor) and the prompt's first picture unchanged (`copy`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgcli.evaluation.benchmarks.grid import draw_grid
from kgcli.evaluation.benchmarks.skills import TASKS, Case, draw_cases
from kgcli.evaluation.benchmarks.skills_methods import (
    BasePainter,
    DecodedPainter,
    ModelPainter,
    Painter,
    has_text_encoder,
    paint_copy,
    paint_other,
    paint_truth,
)
from kgcli.evaluation.benchmarks.skills_scoring import Scorer
from kgcli.evaluation.report.skills import Report, Row, summarise
from kgcli.model.nano_recognisers import Judges
from kgcli.weights.shipped import PACKAGE

if TYPE_CHECKING:
    from kgcli.engine import Model

PROTOCOL = "kgcli-nano-3"  # a new number whenever a figure would mean something else
SHIPPED_JUDGES = PACKAGE / "nano" / "judges"
DEFAULT_NUM = 96
NUM_GRID = 100
BEFORE_TASKS = ("subject", "named")  # asked of the model before instruct too


def evaluate(
    model: Model,
    *,
    num: int = DEFAULT_NUM,
    seed: int = 0,
    before: Model | None = None,
    judges: Path | None = None,
    grid: Path | None = None,
) -> Report:
    """Measure a model.

    Args:
        num: cases of a task of share 1
        before: the same model before instruct
        judges: their folder, where not the shipped ones
        grid: where to draw prompts, their pictures and the answers

    Raises: MissingError where there are no judges.
    """
    start = time.monotonic()
    chosen = Judges.load(judges or SHIPPED_JUDGES)
    painters = make_painters(model, before)
    kept: dict[str, list[Any]] = {}
    rows = run(painters, chosen, num, seed, keep=kept)
    if grid is not None:
        draw_grid(_shown(kept), grid)
    facts = {
        "protocol": PROTOCOL,
        "seed": seed,
        "num": num,
        "model": {"name": model.folder.name, "sha256": model.folder.sha256, "decoder": model.folder.decoder_sha256},
        "before": None if before is None else {"name": before.folder.name, "sha256": before.folder.sha256},
        "judges": chosen.sha256(),
        "device": model.device,
        "dtype": model.dtype,
        "generation": model.folder.cfg.generation.model_dump(),
        "seconds": round(time.monotonic() - start, 1),
    }
    return Report(facts=facts, rows=rows)


def make_painters(model: Model, before: Model | None = None) -> dict[str, tuple[Painter, Sequence[str]]]:
    """Who is measured, by column, and on which tasks."""
    all_tasks = tuple(TASKS)
    with_images = tuple(name for name in TASKS if name != "text")
    painters: dict[str, tuple[Painter, Sequence[str]]] = {"model": (ModelPainter(model), all_tasks)}
    if before is not None:
        painters["before"] = (ModelPainter(before), BEFORE_TASKS)
    if has_text_encoder(model):
        painters["base"] = (BasePainter(model), ("text",))
    painters["true"] = (paint_truth, all_tasks)
    painters["vae"] = (DecodedPainter(model), all_tasks)
    painters["other"] = (paint_other, all_tasks)
    painters["copy"] = (paint_copy, with_images)
    return painters


def run(
    painters: dict[str, tuple[Painter, Sequence[str]]],
    judges: Judges,
    num: int,
    seed: int,
    *,
    keep: dict[str, list[Any]] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Ask every painter all of its tasks and sum up what the judges say; `keep` takes the first one's answers."""
    rows: list[Row] = []
    for task in TASKS:
        cases = draw_cases(task, num, seed)
        scorer = Scorer(cases, judges)
        for number, (name, (paint, tasks)) in enumerate(painters.items()):
            if task not in tasks:
                continue
            (say or _say)(f"{TASKS[task].title}: {len(cases)} pictures, {name}")
            pictures = paint(cases)
            rows += summarise(task, name, cases, scorer(pictures))
            if keep is not None and number == 0:
                keep[task] = list(zip(cases, pictures, strict=True))
    return rows


def _shown(kept: dict[str, list[Any]]) -> list[tuple[Case, Any]]:
    """The first answers of every task with pictures in its prompts, in turns."""
    columns = [pairs for task, pairs in kept.items() if task != "text"]
    longest = max(len(pairs) for pairs in columns)
    turns = [pairs[index] for index in range(longest) for pairs in columns if index < len(pairs)]
    return turns[:NUM_GRID]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

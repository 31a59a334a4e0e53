"""`kg eval nano`: skills of a nano model, on instances that no stage has seen.

`skills` defines prompts and scores. Baselines are true renders (`true`, the ceiling), their VAE reconstructions
(`vae`), true renders of other instances that the same words describe (`twin`, what words can tell), those of
distractors (`other`, the floor) and the prompt's first image unchanged (`copy`).
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.baselines.world import Other, Reconstruction, Truth, Twin
from kgcli.evaluation.benchmarks.nano_world import check_model
from kgcli.evaluation.benchmarks.skills import SKILLS, TASKS, Case, case_of, skills_plan, write_inputs
from kgcli.evaluation.metrics.recognition import Recognition
from kgcli.evaluation.plan import Item, Plan
from kgcli.evaluation.report.skills import Report, Row, summarise
from kgcli.evaluation.run.generate import Progress
from kgcli.evaluation.scores import image_score
from kgcli.weights.shipped import RECOGNISERS

if TYPE_CHECKING:
    from kgcli.inference.model import Model
    from kgcli.model.nano_recognisers import Recognisers

PROTOCOL = "kgcli-nano-4"  # raised whenever a change makes scores incomparable
DEFAULT_NUM = 96
NUM_GRID = 100
BEFORE_TASKS = ("subject", "named")  # also measured before instruct

Columns = Mapping[str, tuple[Method, Sequence[str]]]  # name in the report -> method and its tasks
Answers = dict[str, list[tuple[Case, Image.Image]]]  # by task


def evaluate(
    model: Model,
    *,
    num: int = DEFAULT_NUM,
    seed: int = 0,
    before: Model | None = None,
    judges: Path | None = None,
    grid: Path | None = None,
) -> Report:
    """Measure the skills of a model.

    Args:
        num: cases of a task with `scale` 1
        before: the same model before instruct
        judges: folder of recognisers, instead of those that ship
        grid: file for prompts, their images and the outputs

    Raises: MissingError if there are no recognisers, IncompatibleError for those of another world or a model of images
        of another size.
    """
    start = time.monotonic()
    check_model(model.folder)
    chosen = load_judges(judges)
    answers: Answers = {}
    with tempfile.TemporaryDirectory() as work:
        plan = skills_plan(Path(work), num, seed, {})
        write_inputs(plan)
        rows = measure(columns_of(model, before), plan, chosen, keep=answers)
    if grid is not None:
        from kgcli.evaluation.report.grid import write_cases

        write_cases(in_turns(answers, [task for task in answers if task != "text"]), grid)
    facts = {
        "protocol": PROTOCOL,
        "seed": seed,
        "num": num,
        "model": model_fingerprint(model),
        "before": None if before is None else {"name": before.folder.name, "sha256": before.folder.sha256},
        "judges": chosen.sha256(),
        "device": model.device,
        "dtype": model.dtype,
        "generation": model.folder.cfg.generation.model_dump(),
        "seconds": round(time.monotonic() - start, 1),
    }
    return Report(facts=facts, rows=rows)


def columns_of(model: Model, before: Model | None = None) -> Columns:
    """Return the methods to measure, each with its tasks."""
    from kgcli.evaluation.baselines.copy_input import CopyInput
    from kgcli.evaluation.baselines.kosmosg import KosmosG
    from kgcli.evaluation.baselines.sd import StableDiffusion, has_text_encoder

    options, all_tasks = MethodOptions(), SKILLS
    truth = Truth(options)
    columns: dict[str, tuple[Method, Sequence[str]]] = {"model": (KosmosG.of(model), all_tasks)}
    if before is not None:
        columns["before"] = (KosmosG.of(before), BEFORE_TASKS)
    if has_text_encoder(model.folder):
        columns["base"] = (StableDiffusion.of(model), ("text",))
    columns["true"] = (truth, all_tasks)
    columns["vae"] = (Reconstruction.of(truth, model), all_tasks)
    with_images = tuple(name for name in SKILLS if name != "text")
    columns["twin"] = (Twin(options), with_images)
    columns["other"] = (Other(options), all_tasks)
    columns["copy"] = (CopyInput(options), with_images)
    return columns


def measure(
    columns: Columns,
    plan: Plan,
    recognisers: Recognisers,
    *,
    keep: Answers | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Score every method on all of its tasks; `keep` receives the first method's images."""
    rows: list[Row] = []
    for task in dict.fromkeys(item.category for item in plan.items):
        items = [item for item in plan.items if item.category == task]
        cases = [case_of(item) for item in items]
        recognise = recognition_of(recognisers, cases)
        for number, (name, (method, tasks)) in enumerate(columns.items()):
            if task not in tasks:
                continue
            (say or note)(f"{TASKS[task].title}: {len(items)} images, {name}")
            images = answer(method, plan, items)
            scored = zip(items, cases, recognise(images), strict=True)
            rows += summarise(task, name, [image_score(i, TASKS[task].score(case, one)) for i, case, one in scored])
            if keep is not None and number == 0:
                keep[task] = list(zip(cases, images, strict=True))
    return rows


def load_judges(folder: Path | None = None) -> Recognisers:
    """Load the recognisers that ship, or those of a folder.

    Raises: MissingError; IncompatibleError for recognisers of another world.
    """
    from kgcli.model.nano_recognisers import Recognisers

    return Recognisers.load(folder or RECOGNISERS)


def recognition_of(recognisers: Recognisers, cases: Sequence[Case]) -> Recognition:
    """Return the recognition of one image for each case."""
    specs, galleries = [case.spec for case in cases], [case.galleries for case in cases]
    return Recognition(recognisers, specs, galleries)


def answer(method: Method, plan: Plan, items: Sequence[Item]) -> list[Image.Image]:
    """Return a method's image for each item of a plan, in memory."""
    data, images = Path(plan.data), []
    progress = Progress(f"images, {method.name}", len(items))
    for unit in dataclasses.replace(plan, items=tuple(items)).units():
        images += method.draw(unit, data, data)
        progress.add(len(unit))
    return images


def model_fingerprint(model: Model) -> dict[str, Any]:
    """Return the fingerprint of a model for a report."""
    folder = model.folder
    return {"name": folder.name, "sha256": folder.sha256, "decoder": folder.decoder_sha256}


def note(line: str) -> None:
    """Print a progress line on stderr."""
    print(line, file=sys.stderr, flush=True)


def in_turns(answers: Answers, tasks: Sequence[str]) -> list[tuple[Case, Image.Image]]:
    """Interleave the first images of some tasks."""
    columns = [answers[task] for task in tasks]
    longest = max(len(pairs) for pairs in columns)
    turns = [pairs[index] for index in range(longest) for pairs in columns if index < len(pairs)]
    return turns[:NUM_GRID]

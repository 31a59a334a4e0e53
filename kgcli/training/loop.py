"""The training loop of every stage, on one process or many, interrupted and resumed exactly.

All randomness of a step comes from (seed, step, sample number) and all data from the step's number, so a checkpoint
needs no loader or generator state and a resumed run repeats an uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import Tensor

from kgcli.data.pool import Pool
from kgcli.errors import MissingError
from kgcli.files import locked, remove_leftovers
from kgcli.recipe import Recipe
from kgcli.training import checkpoint
from kgcli.training.logging import Metrics, say
from kgcli.training.precision import plain_attention
from kgcli.training.resume import recipe_changes
from kgcli.training.run import Run, start
from kgcli.training.signals import stop_on_signals
from kgcli.training.watch.validation import Validation


def train(recipe: Recipe, resume: str = "auto", dry_run: bool = False) -> str:
    """Run a recipe to its end and export its result to `output_dir/final`; return the path.

    Raises:
        ConfigError, MissingError: the recipe, its data or its initial weights are wrong or missing.
        KeyboardInterrupt: interrupted; a checkpoint of the last whole step is written first.
    """
    if dry_run:
        from kgcli.training.checks.report import describe

        return str(describe(recipe, resume))
    run = Run(recipe)
    trainer = run.trainer
    with contextlib.ExitStack() as stack:
        if run.processes.is_main:
            stack.enter_context(locked(run.folder))
            _tidy(run.folder, resume)
        run.processes.wait()
        state = _resume(run, resume)
        run.say(f"run folder {run.folder}: " + (f"resuming from step {trainer.step}" if state else "starting anew"))
        if run.processes.is_main:
            run.metrics = stack.enter_context(Metrics(recipe, trainer.step, state))
        run.render()
        run.keep()
        pool = run.pool()
        if recipe.validation.every is not None:
            run.validation = Validation(run)
        stopped = stack.enter_context(stop_on_signals())
        stack.enter_context(plain_attention(run.device))
        start(run)
        for values in trainer.steps(run.batches(pool, trainer.step), run.losses):
            signal = max(number for numbers in run.processes.exchange(stopped[:1] or [0]) for number in numbers)
            _record(run, values, pool, signal > 0)
            if signal:
                trainer.finish()
                run.processes.wait()  # the main process writes the checkpoint
                run.say(f"stopped by signal {signal}; step {trainer.step} is saved")
                raise KeyboardInterrupt
        trainer.finish()
        run.export()
    return f"{run.folder / 'final'}"


def _tidy(folder: Path, resume: str) -> None:
    """Remove partial files of a killed process; move an earlier run aside with --resume none."""
    remove_leftovers(folder)
    remove_leftovers(folder / checkpoint.FOLDER)
    if resume == "none" and (place := checkpoint.retire(folder)) is not None:
        say(f"starting anew: the earlier run was moved to {place}")


def _resume(run: Run, resume: str) -> dict[str, Any]:
    """Resume from the chosen checkpoint, or if that is damaged the newest complete one before; return its state.

    Raises: MissingError if all are damaged, or the named one; IncompatibleError for another recipe's.
    """
    found = checkpoint.find(run.folder, resume)
    if found is None:
        return {}
    older = [] if resume not in ("auto", "true") else checkpoint.list_steps(run.folder)[:-1]
    while True:
        try:
            content = checkpoint.load(found)
            break
        except MissingError as error:
            if not older:
                raise
            run.say(f"{error}: going on from {older[-1].name}")
            found = older.pop()
    for change in recipe_changes(found / "recipe.yaml", run.recipe):
        run.say(f"the recipe differs from that of {found.name}: {change}")
    run.trainer.restore(found, *content)
    run.processes.wait()  # all have read it
    if run.processes.is_main:
        checkpoint.prune(run.folder, found, run.recipe.keep_checkpoints)
    return content[2]


def _record(run: Run, values: dict[str, Tensor | float], pool: Pool | None, stopping: bool) -> None:
    """Log a step; save, validate and show a preview where these are due; on the main process unless all have to take
    part.

    Raises: NotFiniteError after too many skipped steps.
    """
    recipe, step, metrics = run.recipe, run.trainer.step, run.metrics
    last = step == recipe.steps
    if run.device.type == "cpu" or last or stopping or step % min(recipe.log_every, recipe.save_every) == 0:
        run.trainer.finite.check(step, recipe.max_skipped)  # waits for the device
    if metrics is not None:
        metrics.add(step, values)
    # First: a preview that fails must not cost the steps since the last checkpoint.
    if (step % recipe.save_every == 0 or last or stopping) and (metrics or run.trainer.saves_together):
        run.save()
    if run.validation is not None and (step % (recipe.validation.every or 1) == 0 or last):
        losses = run.validation()
        if metrics is not None:
            metrics.validate(step, losses)
    if (step % recipe.sample_every == 0 or last) and (metrics or run.processes.shards):
        images = run.preview(pool)
        if metrics is not None:
            metrics.show(step, images)

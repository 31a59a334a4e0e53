"""Samples per second of a recipe's training loop, against steps on one batch that is kept in memory."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

from kgcli.data.batch import Batch
from kgcli.recipe import Recipe
from kgcli.runtime import peak_memory
from kgcli.speed.card import Card, spread
from kgcli.speed.clock import arithmetic, count_flops, device_name, synchronize
from kgcli.speed.first_samples import FirstSamples
from kgcli.training.precision import plain_attention
from kgcli.training.run import Run, start

WARM_UP = 2  # steps that are not timed: memory is laid out, loaders fill up


def bench_train(recipe: Recipe, num_steps: int) -> Card:
    """Take `num_steps` steps of a recipe's real loop, without checkpoints, logs or previews.

    Nothing is written to the recipe's run folder: what the stage caches on disk goes to a temporary one;
    only the samples that the steps read are cached.
    """
    total = WARM_UP + num_steps
    with tempfile.TemporaryDirectory(prefix="kg-bench-") as folder:
        run = Run(_redirected(recipe, folder, total))
        if run.source.num_rows:
            run.source = FirstSamples(run.source, total * recipe.data.batch_size)
        device = str(run.device)
        pool = run.pool()
        with plain_attention(run.device):
            start(run)
            batches = _Watched(run.batches(pool, 0))
            loop = _timed(run, batches, total, device)
            kept = _timed(run, itertools.repeat(batches.last), total, device)
            flops = count_flops(lambda: list(run.trainer.steps([batches.last], run.losses)))
    seconds, waited = spread(loop[WARM_UP:]), sum(batches.seconds[WARM_UP:total])
    results: dict[str, Any] = {
        "samples_per_second": recipe.data.batch_size / seconds["seconds"],
        **seconds,
        **arithmetic(flops, seconds["seconds"], device),
        "peak_memory_bytes": peak_memory(device),
        "data_wait": waited / sum(loop[WARM_UP:]),
        "against_kept_batch": sum(loop[WARM_UP:]) / sum(kept[WARM_UP:]),
    }
    settings = {
        "stage": recipe.stage,
        "device": device_name(device),
        "precision": recipe.precision,
        "compile": recipe.compile,
        "batch_size": recipe.data.batch_size,
        "workers": recipe.data.num_workers,
        "steps": num_steps,
    }
    return Card("train", settings, results)


class _Watched:
    """Batches with the seconds that each was waited for."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = iter(batches)
        self.seconds: list[float] = []
        self.last: Batch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        self.last = next(self.batches)
        self.seconds.append(time.perf_counter() - begin)
        return self.last


def _timed(run: Run, batches: Iterable[Batch], num_steps: int, device: str) -> list[float]:
    """Return the seconds of each of so many steps."""
    seconds, begin = [], time.perf_counter()
    for _ in itertools.islice(run.trainer.steps(batches, run.losses), num_steps):
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return seconds


def _redirected(recipe: Recipe, folder: str, num_steps: int) -> Recipe:
    """Return a recipe with another folder for its run and its caches, and steps enough."""
    return recipe.model_copy(
        update={
            "output_dir": folder,
            "steps": max(recipe.steps, 4 * num_steps),
            "data": recipe.data.model_copy(update={"rendered": None, "moments": None}),
        }
    )

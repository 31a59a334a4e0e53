"""Engines: a process pool on this machine, or Ray Data on a cluster; both run `build_shard` on each task."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kgcli.construction.config import BuildConfig
from kgcli.construction.shard import ShardTask, build_shard
from kgcli.construction.stage import Place
from kgcli.construction.table import make_stages
from kgcli.errors import KgError, UsageError

ENGINES = ("pool", "ray")

Done = tuple[int, dict[str, Any]]  # number of a task, and the notes of its shard


def check_engine(name: str) -> None:
    """Check that an engine is there. Raises: UsageError."""
    if name not in ENGINES:
        raise UsageError(f"--engine is {name}; it must be {' or '.join(ENGINES)}")
    if name == "ray" and (importlib.util.find_spec("ray") is None or importlib.util.find_spec("pandas") is None):
        raise UsageError("--engine ray needs Ray Data, which is not installed: pip install 'kgcli[ray]'")


class Builder:
    """Stages with their models loaded, in one process."""

    def __init__(self, config: BuildConfig, place: Place) -> None:
        self.config = config
        self.stages = make_stages(config, place)
        if "torch" in sys.modules and place.device == "cpu":
            import torch

            torch.set_num_threads(1)  # more change the last bits, and the processes take all cores as it is

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        """Build one shard. Raises: KgError."""
        return build_shard(task, self.config, self.stages)


def run_pool(tasks: Sequence[ShardTask], config: BuildConfig, place: Place, num_workers: int) -> Iterator[Done]:
    """Yield the shards as they are done, built in this process or in several others.

    Raises: KgError, also where a process was killed; those that are at work finish their shard.
    """
    if num_workers <= 1 or len(tasks) <= 1:
        builder = Builder(config, place) if tasks else None
        for number, task in enumerate(tasks):
            assert builder is not None
            yield number, builder(task)
        return
    context = multiprocessing.get_context("spawn")
    workers = min(num_workers, len(tasks))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(config, place))
    try:
        futures = {pool.submit(_build, task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise KgError("a process ended before its shard was done (out of memory?); run it again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def run_ray(tasks: Sequence[ShardTask], config: BuildConfig, place: Place, num_workers: int) -> Iterator[Done]:
    """Yield the shards as they are done by actors of Ray Data, on the cluster of RAY_ADDRESS or here.

    All machines need source, target and models at the same paths.

    Raises: KgError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        # One more than the actors: Ray Data reads its numbers with it.
        local = {} if address else {"num_cpus": num_workers + 1, "include_dashboard": False}
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
        )
        built = numbers.map_batches(
            _RayBuilder,
            fn_constructor_args=(list(tasks), config, place),
            batch_size=1,
            concurrency=min(num_workers, len(tasks)),
            num_cpus=1,
            num_gpus=0 if place.device == "cpu" else 1,
        )
        for row in built.iter_rows():
            if isinstance(row["result"], KgError):
                raise row["result"]
            yield int(row["number"]), row["result"]
    finally:
        if started:
            ray.shutdown()


class _RayBuilder:
    """An actor; errors of ours come back as values, since Ray wraps those that are raised."""

    def __init__(self, tasks: list[ShardTask], config: BuildConfig, place: Place) -> None:
        self.tasks = tasks
        self.builder: Builder | KgError
        try:
            self.builder = Builder(config, place)
        except KgError as error:
            self.builder = error

    def __call__(self, batch: Any) -> Any:
        import numpy as np

        result = np.empty(len(batch["number"]), object)
        for place, number in enumerate(batch["number"]):
            result[place] = self._build(self.tasks[int(number)])
        return {"number": batch["number"], "result": result}

    def _build(self, task: ShardTask) -> dict[str, Any] | KgError:
        if isinstance(self.builder, KgError):
            return self.builder
        try:
            return self.builder(task)
        except KgError as error:
            return error


_builder: Builder | KgError | None = None  # of a worker process


def _start(config: BuildConfig, place: Place) -> None:
    """Load the models of a worker process, which ends with its parent and leaves Ctrl-C to it."""
    global _builder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _builder = Builder(config, place)
    except KgError as error:
        _builder = error  # raised by the first task: an initializer that fails breaks the pool without a word


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(task: ShardTask) -> dict[str, Any]:
    if isinstance(_builder, KgError):
        raise _builder
    assert _builder is not None
    return _builder(task)

"""Generation on a Ray cluster: one actor per GPU, or a few on CPUs, each with a shard of the units.

All machines need the run folder, the data and the model at the same paths.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

from kgcli.errors import KgError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.table import absolute, make
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import generate_run


def check_ray() -> None:
    """Check that Ray is installed. Raises: UsageError."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed: pip install 'kgcli[ray]'")


def generate_with_ray(run: RunFolder, method: str, options: MethodOptions, num_workers: int) -> None:
    """Generate the missing images of a run with `num_workers` actors, on the cluster of RAY_ADDRESS or locally.

    Raises: KgError, as `generate_run` in the failed actor.
    """
    check_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": num_workers, "include_dashboard": False}
        ray.init(address=address, logging_level="ERROR", **local)
    try:
        on_gpus = options.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        actor: Any = ray.remote(_Worker).options(num_cpus=1, num_gpus=1 if on_gpus else 0)
        workers = [
            actor.remote(run.path.resolve(), run.plan.data, absolute(method), options) for _ in range(num_workers)
        ]
        ray.get([worker.generate.remote((number, num_workers)) for number, worker in enumerate(workers)])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, KgError):
            raise error.cause from None
        raise
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """A process of the cluster with its own method."""

    def __init__(self, path: Path, data: str, method: str, options: MethodOptions) -> None:
        self.run = RunFolder(path, dataclasses.replace(RunFolder.open(path).plan, data=data))
        self.method = make(method, options)

    def generate(self, shard: tuple[int, int]) -> None:
        """Generate one shard."""
        generate_run(self.run, self.method, shard)

"""Nano benchmarks for reproduced tables: plan, generation, and scores of extractors and recognisers."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kgcli.errors import Checks
from kgcli.evaluation.baselines.base import Method
from kgcli.evaluation.baselines.table import make
from kgcli.evaluation.benchmarks.nano import COCO, NUM_REAL, coco_plan, dreambench_plan
from kgcli.evaluation.benchmarks.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.benchmarks.nano_world import SAMPLING, NanoWeights, check_version, find_weights
from kgcli.evaluation.extractors.base import Extractors
from kgcli.evaluation.extractors.nano import nano_extractors
from kgcli.evaluation.plan import PLAN, Plan
from kgcli.evaluation.reproduce.reproduction import Job, Reproduction, jobs, minutes_file, reproduce
from kgcli.evaluation.reproduce.table import write_table
from kgcli.evaluation.run.benchmark import method_fingerprint
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import finish, generate_run
from kgcli.evaluation.run.nano_score import score_nano
from kgcli.evaluation.scores import Scores
from kgcli.files import write_whole
from kgcli.runtime import choose_device


class NanoBench:
    """Generate and score rows; existing images and features are reused."""

    def __init__(
        self,
        data: Path,
        extractors: Extractors,
        num_real: int = NUM_REAL,
        *,
        weights: NanoWeights | None = None,
    ) -> None:
        self.folder = data
        self.extractors = extractors
        self.num_real = num_real  # real images that captions are compared with
        self.weights = weights  # with the recognisers; None: those that ship

    @classmethod
    def open(cls, data: Path, folder: Path | None = None) -> NanoBench:
        """Open with what ships or the weights of a folder. Raises: MissingError, IncompatibleError."""
        weights = find_weights(folder)
        return cls(data, nano_extractors(weights.evaluators), weights=weights)

    def check(self, planned: Sequence[Job]) -> None:
        """Check that what the output folder holds is of this version of the suites, before anything is trained for it.

        Raises: UsageError, MissingError, IncompatibleError; several: SeveralErrors.
        """
        with Checks() as check:
            for suite in dict.fromkeys(job.suite for job in planned):
                if (self.folder / suite).exists():
                    check(self.data, suite)
            for job in planned:
                if (job.out / PLAN).is_file():
                    check(_check_run, job.out)

    def data(self, suite: str) -> NanoData:
        """Return the true images of a suite, rendered first if absent. Raises: UsageError, MissingError."""
        folder = self.folder / suite
        return coco_data(folder, self.num_real) if suite == COCO else dreambench_data(folder)

    def __call__(self, job: Job) -> Scores:
        """Return the scores of a row and seed. Raises: UsageError if its folder holds a run of other options."""
        sampling = job.options.sampling.over(SAMPLING)
        method = make(job.row.method, dataclasses.replace(job.options, sampling=sampling))
        run = RunFolder.start(job.out, self.plan(job, self.data(job.suite), method))
        print(f"{job.row.title}, seed {job.seed}: {len(run.missing())} images to generate", file=sys.stderr, flush=True)
        start = time.monotonic()
        generate_run(run, method)
        _add_minutes(minutes_file(job.out), (time.monotonic() - start) / 60)
        finish(run)
        return score_nano(run, self.folder / "statistics", weights=self.weights, extractors=self.extractors)

    def plan(self, job: Job, data: NanoData, method: Method) -> Plan:
        """Return the plan of a row."""
        facts = method_fingerprint(method, job.row.method)
        if job.suite == COCO:
            return coco_plan(data.sha256, data.folder, job.num, job.seed, facts, self.num_real)
        return dreambench_plan(data.sha256, data.folder, job.suite_options, facts)


def run(options: Reproduction, weights: Path | None = None) -> str:
    """Reproduce a table; return it as Markdown. Raises: KgError."""
    from kgcli.training.loop import train

    choose_device(options.device)  # checked before training, as are the extractors and what an earlier call left
    bench = NanoBench.open(options.out / "data", weights)
    bench.check(jobs(options))
    return write_table(options, reproduce(options, train, bench))


def _check_run(folder: Path) -> None:
    check_version(RunFolder.open(folder).plan.protocol, folder)


def _add_minutes(path: Path, minutes: float) -> None:
    """Add to the minutes of earlier, interrupted calls."""
    before = float(json.loads(path.read_text("utf-8"))["minutes"]) if path.is_file() else 0.0
    write_whole(path, (json.dumps({"minutes": before + minutes}) + "\n").encode())

"""A benchmark from the first check to the scores: plan, drawing, scoring, each taken up where it was left. No torch.

All that can be wrong (data, method, model, weights of the extractors, run folder) is found before anything is drawn.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgcli.config import SamplingConfig
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.baselines.table import make, source_facts
from kgcli.evaluation.plan import PLAN, DreamBenchOptions, Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import LOCKS, POLL_SECONDS, draw_run, environment_shard, finish, wait_for_pictures
from kgcli.evaluation.run.scoring import Ready, Scoring, check_texts, get_ready, score_run
from kgcli.files import locked
from kgcli.runtime import versions

if TYPE_CHECKING:
    from kgcli.evaluation.benchmarks.dreambench_data import DreamBenchData

PUBLISHED = "published"  # --captions: those of the paper
STEPS = ("draw", "score")
ENGINES = ("local", "ray")
_LIBRARIES = ("torch", "diffusers", "transformers", "pillow")  # that pictures depend on


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All that a user may ask of a benchmark; what a suite does not have is left at None."""

    out: Path
    suite: str
    data: Path | None = None
    method: str = "kosmosg"
    options: MethodOptions = MethodOptions()
    images: Path | None = None  # pictures that are there, in place of a method
    name: str | None = None  # of who made those
    only: str | None = None  # draw or score
    engine: str = "local"
    num_workers: int = 1
    scoring: Scoring = Scoring()
    ask: DreamBenchOptions = DreamBenchOptions()
    captions: str = PUBLISHED
    num: int | None = None  # captions

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--only", self.only, (*STEPS, None)),
            ("--engine", self.engine, ENGINES),
            ("--suite", self.suite, tuple(SUITES)),
        ):
            if value not in known:
                raise UsageError(f"{flag} is {value}; it must be {' or '.join(filter(None, known))}")
        if self.num_workers < 1:
            raise UsageError(f"--workers is {self.num_workers}; it must be at least 1")
        if self.name is not None and not self.name.isprintable():
            raise UsageError(f"--name is {self.name!r}; it must be text that can be printed")
        if self.name is not None and self.images is None:
            raise UsageError("--name is of who made the pictures of --images, which is not given")
        if self.suite == "nano-coco" and self.captions != PUBLISHED:
            raise UsageError(f"--captions has no use with {self.suite}, which has captions of its own; give --num")
        if self.num is not None and self.num < 2 and self.only != "draw":
            raise UsageError(f"--num is {self.num}; a distribution needs two captions or more")


@dataclass(frozen=True)
class Suite:
    """What sets one benchmark apart: its plan, and how the paper drew."""

    plan: Callable[[Bench, Mapping[str, Any]], Plan]
    drawing: SamplingConfig  # where the user says nothing


def run_benchmark(bench: Bench) -> RunFolder:
    """Draw and score, or what `only` leaves of it; returns the run.

    Raises: KgError.
    """
    shard = environment_shard() if bench.engine == "local" else (0, 1)
    ready: Ready | None
    if bench.only == "score" and bench.images is None:
        run = _open_to_score(bench)
        ready = get_ready(run.plan.suite, bench.data, bench.scoring)
    else:
        ready = None if bench.only == "draw" else get_ready(bench.suite, bench.data, bench.scoring)
        run = _draw(bench, shard, ready)
    if shard[0] > 0:
        return run
    if bench.only != "score" and shard[1] > 1:
        wait_for_pictures(run)
    finish(run)
    if ready is not None:
        with locked(run.path / LOCKS, name="score"):
            score_run(run, ready)
    return run


def suite_options(bench: Bench) -> MethodOptions:
    """The options of a method, with the suite's drawing where the user said nothing."""
    drawing = SUITES[bench.suite]().drawing
    return dataclasses.replace(bench.options, sampling=bench.options.sampling.over(drawing))


def method_facts(method: Method, name: str) -> dict[str, Any]:
    """All that the pictures of a method depend on: its own facts, a user's code, versions."""
    found = versions(_LIBRARIES)
    known = {"kgcli": found["kgcli"], **{library: found.get(library, "") for library in _LIBRARIES}}
    return {**method.facts(), **source_facts(name), "versions": known}


def _draw(bench: Bench, shard: tuple[int, int], ready: Ready | None) -> RunFolder:
    """The run with this process's share of the pictures in it."""
    make_plan = SUITES[bench.suite]().plan
    if bench.images is not None:
        plan = make_plan(bench, {})
        if ready is not None:
            check_texts(plan, ready)
        from kgcli.evaluation.run.foreign import find_pictures, foreign_plan, take_pictures

        sources = find_pictures(bench.images, plan)
        run = _start(bench.out, foreign_plan(plan, sources, bench.name or bench.images.stem), shard)
        if shard[0] == 0:
            take_pictures(run, sources)
        return run
    if bench.engine == "ray":
        from kgcli.evaluation.run.ray_engine import check_ray, draw_with_ray

        check_ray()
    options = _on_own_device(suite_options(bench), shard)
    method = make(bench.method, options)
    plan = make_plan(bench, method_facts(method, bench.method))
    if callable(check := getattr(method, "check", None)):
        check(plan.items)
    if ready is not None:
        check_texts(plan, ready)
    run = _start(bench.out, plan, shard)
    with locked(run.path / LOCKS, name=f"shard-{shard[0]}-of-{shard[1]}"):
        if bench.engine == "ray":
            draw_with_ray(run, bench.method, options, bench.num_workers)
        else:
            draw_run(run, method, shard)
    return run


def _open_to_score(bench: Bench) -> RunFolder:
    """The run with its inputs in the folder that the user names, or the cache: a plan never says where to read.

    Raises: UsageError, MissingError.
    """
    run = RunFolder.open(bench.out)
    if run.plan.suite not in SUITES:
        raise MissingError(f"{bench.out / PLAN} is of a suite {run.plan.suite!r} that this version does not know")
    data: Path | None
    if run.plan.suite.startswith("nano-"):
        data = _nano_folder(bench, run.plan.suite)
    else:
        data = _given_data(bench) if run.plan.suite != "coco" else bench.data
    where = "" if data is None else str(data.expanduser().resolve())
    return RunFolder(run.path, dataclasses.replace(run.plan, data=where))


def _start(out: Path, plan: Plan, shard: tuple[int, int]) -> RunFolder:
    """The run of a plan. One process writes it; should that one fail, the launcher ends the others too."""
    while shard[0] > 0 and not (out / PLAN).is_file():
        time.sleep(POLL_SECONDS / 10)
    return RunFolder.start(out, plan)


def _on_own_device(options: MethodOptions, shard: tuple[int, int]) -> MethodOptions:
    """Where several processes share a machine's GPUs, one for each."""
    if shard[1] == 1 or options.device not in ("auto", "cuda"):
        return options
    import torch

    if not torch.cuda.is_available():
        return options
    local = int(os.environ.get("LOCAL_RANK", shard[0]))
    return dataclasses.replace(options, device=f"cuda:{local % torch.cuda.device_count()}")


def _dreambench() -> Suite:
    from kgcli.evaluation.benchmarks.dreambench import DRAWING, single_plan

    return Suite(lambda bench, method: single_plan(_photos(bench), bench.ask, method), DRAWING)


def _dreambench_multi() -> Suite:
    from kgcli.evaluation.benchmarks.dreambench import DRAWING, multi_plan

    return Suite(lambda bench, method: multi_plan(_photos(bench), bench.ask, method), DRAWING)


def _photos(bench: Bench) -> DreamBenchData:
    from kgcli.evaluation.benchmarks.dreambench_data import open_dreambench

    return open_dreambench(_given_data(bench))


def _given_data(bench: Bench) -> Path:
    from kgcli.evaluation.benchmarks.dreambench_data import HOW_TO_GET

    if bench.data is None:
        raise UsageError(f"give --data FOLDER with the DreamBench photos; get them: {HOW_TO_GET}")
    return bench.data


def _coco() -> Suite:
    from kgcli.evaluation.benchmarks.coco import DRAWING, choose_captions, coco_plan

    def plan(bench: Bench, method: Mapping[str, Any]) -> Plan:
        return coco_plan(choose_captions(bench.captions, bench.data, bench.num), bench.ask.seed, method, bench.data)

    return Suite(plan, DRAWING)


def _nano_dreambench() -> Suite:
    from kgcli.evaluation.benchmarks.nano import DRAWING, DREAMBENCH, dreambench_plan
    from kgcli.evaluation.benchmarks.nano_data import dreambench_data

    def plan(bench: Bench, method: Mapping[str, Any]) -> Plan:
        data = dreambench_data(_nano_folder(bench, DREAMBENCH))
        return dreambench_plan(data.sha256, data.folder, bench.ask, method)

    return Suite(plan, DRAWING)


def _nano_coco() -> Suite:
    from kgcli.evaluation.benchmarks.nano import COCO, DRAWING, NUM_CAPTIONS, check_captions, coco_plan
    from kgcli.evaluation.benchmarks.nano_data import coco_data

    def plan(bench: Bench, method: Mapping[str, Any]) -> Plan:
        num = NUM_CAPTIONS if bench.num is None else bench.num
        check_captions(num)
        data = coco_data(_nano_folder(bench, COCO))
        return coco_plan(data.sha256, data.folder, num, bench.ask.seed, method)

    return Suite(plan, DRAWING)


def _nano_folder(bench: Bench, suite: str) -> Path:
    """Where the images of a nano suite are, or are made: a folder given, or one in the user's cache."""
    from kgcli.evaluation.benchmarks.nano_data import cached_folder

    return (bench.data or cached_folder(suite)).expanduser().resolve()


# By the name of the suite in plans and scores; a suite's module is imported when it is asked for.
SUITES: dict[str, Callable[[], Suite]] = {
    "dreambench": _dreambench,
    "dreambench-multi": _dreambench_multi,
    "coco": _coco,
    "nano-dreambench": _nano_dreambench,
    "nano-coco": _nano_coco,
}

"""A benchmark from the first check to the scores: plan, generation, scoring, each resumable.

Data, method, model, extractor weights and run folder are checked before any image is generated.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgcli.config import SamplingConfig
from kgcli.errors import Checks, KgError, MissingError, UsageError, raise_all
from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.baselines.table import make, source_facts
from kgcli.evaluation.benchmarks.nano_world import SAMPLING as NANO_SAMPLING
from kgcli.evaluation.benchmarks.nano_world import check_method, check_version
from kgcli.evaluation.plan import PLAN, DreamBenchOptions, Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import LOCKS, POLL_SECONDS, finish, generate_run, wait_for_images
from kgcli.evaluation.run.scoring import Resources, Scoring, check_suits, check_texts, find_resources, score_run
from kgcli.files import locked
from kgcli.runtime import environment_shard, versions

if TYPE_CHECKING:
    from kgcli.evaluation.benchmarks.dreambench_data import DreamBenchData

PUBLISHED = "published"  # --captions: as in the paper
STEPS = ("generate", "score")
ENGINES = ("local", "ray")
_LIBRARIES = ("torch", "diffusers", "transformers", "pillow")  # that affect generated images


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Options of a benchmark run; None where the suite has no such option."""

    out: Path
    suite: str
    data: Path | None = None
    method: str = "kosmosg"
    options: MethodOptions = MethodOptions()
    images: Path | None = None  # existing images instead of a method
    name: str | None = None  # of the system that generated `images`
    only: str | None = None  # generate or score
    engine: str = "local"
    num_workers: int = 1
    scoring: Scoring = Scoring()
    suite_options: DreamBenchOptions = DreamBenchOptions()
    captions: str = PUBLISHED
    num: int | None = None  # captions

    def __post_init__(self) -> None:
        raise_all([UsageError(message) for message in self._faults()])

    def _faults(self) -> Iterator[str]:
        for flag, value, known in (
            ("--only", self.only, (*STEPS, None)),
            ("--engine", self.engine, ENGINES),
            ("--suite", self.suite, tuple(SUITES)),
        ):
            if value not in known:
                yield f"{flag} is {value}; it must be {' or '.join(filter(None, known))}"
        if self.num_workers < 1:
            yield f"--workers is {self.num_workers}; it must be at least 1"
        if self.name is not None and not self.name.isprintable():
            yield f"--name is {self.name!r}; it must be printable text"
        if self.name is not None and self.images is None:
            yield "--name names the system behind --images; give --images too"
        if self.suite == "nano-coco" and self.captions != PUBLISHED:
            yield f"--captions does not apply to {self.suite}, which has its own captions; give --num"
        if self.num is not None and self.num < 2 and self.only != "generate":
            yield f"--num is {self.num}; a distribution needs two captions or more"


@dataclass(frozen=True)
class Suite:
    """The plan of one benchmark and the sampling settings of its paper."""

    plan: Callable[[Mapping[str, Any]], Plan]  # of the fingerprint of the method
    sampling: SamplingConfig  # defaults


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a benchmark."""

    plan: Plan
    method: Method | None = None  # None where `images` are given
    options: MethodOptions = MethodOptions()  # of the method in this process
    images: Mapping[str, Path] = field(default_factory=dict)  # given ones, by the paths of the plan's items
    resources: Resources | None = None  # of scoring; None if nothing is scored


def run_benchmark(bench: Bench) -> RunFolder:
    """Generate and score, or only one of the two (`only`), and return the run.

    Raises: KgError; SeveralErrors with all faults of the inputs.
    """
    shard = environment_shard() if bench.engine == "local" else (0, 1)
    resources: Resources | None
    if bench.only == "score" and bench.images is None:
        run = _open_to_score(bench)
        resources = find_resources(run.plan.suite, bench.data, bench.scoring)
    else:
        inputs = check_inputs(bench, shard)
        resources = inputs.resources
        run = _generate(bench, inputs, shard)
    if shard[0] > 0:
        return run
    if bench.only != "score" and shard[1] > 1:
        wait_for_images(run)
    finish(run)
    if resources is not None:
        with locked(run.path / LOCKS, name="score"):
            score_run(run, resources)
    return run


def check_inputs(bench: Bench, shard: tuple[int, int] = (0, 1), known: Sequence[KgError] = ()) -> Inputs:
    """Check everything that a benchmark starts from before anything is generated: weights for scoring last, but those
    of nano suites, which are no download, before the suite's data are rendered. `known` are faults found before.

    Raises: SeveralErrors with all faults, or the only one.
    """
    with Checks() as check:
        check.faults += known
        if bench.engine == "ray":
            from kgcli.evaluation.run.ray_engine import check_ray

            check(check_ray)
        options = _on_own_device(method_options(bench), shard)
        method = None if bench.images is not None else check(make, bench.method, options)
        facts = None if method is None else check(method_fingerprint, method, bench.method)
        nano, resources = bench.suite.startswith("nano-"), None
        if nano and method is not None:
            check(check_method, options)
        if bench.only != "generate":
            check(check_suits, bench.suite, bench.scoring)
            if nano and not check.faults:
                resources = check(find_resources, bench.suite, bench.data, bench.scoring)
        worth_it = not (check.faults and nano)  # its data would be made for nothing
        # Without a method a plan still shows the faults of the data.
        plan = check(SUITES[bench.suite](bench).plan, facts or {}) if worth_it else None
        images: Mapping[str, Path] | None = {}
        if plan is not None and bench.images is not None:
            from kgcli.evaluation.run.foreign import find_images

            images = check(find_images, bench.images, plan)
        if plan is not None and callable(prompts_fit := getattr(method, "check", None)):
            check(prompts_fit, plan.items)
        if plan is not None and facts is not None and shard[0] == 0:
            check(RunFolder.check_start, bench.out, plan)
        if bench.only != "generate" and not nano:
            resources = check(find_resources, bench.suite, bench.data, bench.scoring)
        if plan is not None and resources is not None:
            check(check_texts, plan, resources)
    assert plan is not None and images is not None
    return Inputs(plan, method, options, images, resources)


def method_options(bench: Bench) -> MethodOptions:
    """Return the method's options with the suite's sampling settings as defaults."""
    defaults = SUITES[bench.suite](bench).sampling
    return dataclasses.replace(bench.options, sampling=bench.options.sampling.over(defaults))


def method_fingerprint(method: Method, name: str) -> dict[str, Any]:
    """Return everything that determines a method's images: its fingerprint, custom code, library versions."""
    found = versions(_LIBRARIES)
    known = {"kgcli": found["kgcli"], **{library: found.get(library, "") for library in _LIBRARIES}}
    return {**method.facts(), **source_facts(name), "versions": known}


def _generate(bench: Bench, inputs: Inputs, shard: tuple[int, int]) -> RunFolder:
    """Generate this process's shard of the images and return the run."""
    if bench.images is not None:
        from kgcli.evaluation.run.foreign import foreign_plan, import_images

        sources = dict(inputs.images)
        run = _start(bench.out, foreign_plan(inputs.plan, sources, bench.name or bench.images.stem), shard)
        if shard[0] == 0:
            import_images(run, sources)
        return run
    assert inputs.method is not None
    run = _start(bench.out, inputs.plan, shard)
    with locked(run.path / LOCKS, name=f"shard-{shard[0]}-of-{shard[1]}"):
        if bench.engine == "ray":
            from kgcli.evaluation.run.ray_engine import generate_with_ray

            generate_with_ray(run, bench.method, inputs.options, bench.num_workers)
        else:
            generate_run(run, inputs.method, shard)
    return run


def _open_to_score(bench: Bench) -> RunFolder:
    """Open a run with its inputs in the given folder or the cache: a plan does not store their location.

    Raises: UsageError, MissingError.
    """
    run = RunFolder.open(bench.out)
    if run.plan.suite not in SUITES:
        raise MissingError(f"{bench.out / PLAN} has the suite {run.plan.suite!r}, which this version does not know")
    data: Path | None
    if run.plan.suite.startswith("nano-"):
        check_version(run.plan.protocol, bench.out)
        data = _nano_folder(bench, run.plan.suite)
    else:
        data = _given_data(bench) if run.plan.suite != "coco" else bench.data
    where = "" if data is None else str(data.expanduser().resolve())
    return RunFolder(run.path, dataclasses.replace(run.plan, data=where))


def _start(out: Path, plan: Plan, shard: tuple[int, int]) -> RunFolder:
    """Start the run of a plan. One process writes it; if it fails, the launcher ends the others too."""
    while shard[0] > 0 and not (out / PLAN).is_file():
        time.sleep(POLL_SECONDS / 10)
    return RunFolder.start(out, plan)


def _on_own_device(options: MethodOptions, shard: tuple[int, int]) -> MethodOptions:
    """Assign each of several local processes a GPU of its own."""
    if shard[1] == 1 or options.device not in ("auto", "cuda"):
        return options
    import torch

    if not torch.cuda.is_available():
        return options
    local = int(os.environ.get("LOCAL_RANK", shard[0]))
    return dataclasses.replace(options, device=f"cuda:{local % torch.cuda.device_count()}")


def _dreambench(bench: Bench) -> Suite:
    from kgcli.evaluation.benchmarks.dreambench import SAMPLING, single_plan

    return Suite(lambda method: single_plan(_photos(bench), bench.suite_options, method), SAMPLING)


def _dreambench_multi(bench: Bench) -> Suite:
    from kgcli.evaluation.benchmarks.dreambench import SAMPLING, multi_plan

    return Suite(lambda method: multi_plan(_photos(bench), bench.suite_options, method), SAMPLING)


def _photos(bench: Bench) -> DreamBenchData:
    from kgcli.evaluation.benchmarks.dreambench_data import open_dreambench

    return open_dreambench(_given_data(bench))


def _given_data(bench: Bench) -> Path:
    from kgcli.evaluation.benchmarks.dreambench_data import HOW_TO_GET

    if bench.data is None:
        raise UsageError(f"give --data FOLDER with the DreamBench photos; get them: {HOW_TO_GET}")
    return bench.data


def _coco(bench: Bench) -> Suite:
    from kgcli.evaluation.benchmarks.coco import SAMPLING, choose_captions, coco_plan

    def plan(method: Mapping[str, Any]) -> Plan:
        captions = choose_captions(bench.captions, bench.data, bench.num)
        return coco_plan(captions, bench.suite_options.seed, method, bench.data)

    return Suite(plan, SAMPLING)


def _nano_dreambench(bench: Bench) -> Suite:
    from kgcli.evaluation.benchmarks.nano import DREAMBENCH, dreambench_plan
    from kgcli.evaluation.benchmarks.nano_data import dreambench_data

    def plan(method: Mapping[str, Any]) -> Plan:
        data = dreambench_data(_nano_folder(bench, DREAMBENCH))
        return dreambench_plan(data.sha256, data.folder, bench.suite_options, method)

    return Suite(plan, NANO_SAMPLING)


def _nano_coco(bench: Bench) -> Suite:
    from kgcli.evaluation.benchmarks.nano import COCO, NUM_CAPTIONS, check_captions, coco_plan
    from kgcli.evaluation.benchmarks.nano_data import coco_data

    def plan(method: Mapping[str, Any]) -> Plan:
        num = NUM_CAPTIONS if bench.num is None else bench.num
        check_captions(num)
        data = coco_data(_nano_folder(bench, COCO))
        return coco_plan(data.sha256, data.folder, num, bench.suite_options.seed, method)

    return Suite(plan, NANO_SAMPLING)


def _nano_folder(bench: Bench, suite: str) -> Path:
    """Return the image folder of a nano suite: the given one, or that in the user's cache."""
    from kgcli.evaluation.benchmarks.nano_data import cached_folder

    return (bench.data or cached_folder(suite)).expanduser().resolve()


# Keyed by the suite name in plans and scores; a suite's module is imported on use.
SUITES: dict[str, Callable[[Bench], Suite]] = {
    "dreambench": _dreambench,
    "dreambench-multi": _dreambench_multi,
    "coco": _coco,
    "nano-dreambench": _nano_dreambench,
    "nano-coco": _nano_coco,
}

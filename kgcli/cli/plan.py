"""Jobs from flags: prompts, images, settings and file names are checked before torch loads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from kgcli.cli.options import GenerateFlags
from kgcli.config import OFFLOADS, SamplingConfig
from kgcli.data.textfiles import TABLES, read_entries
from kgcli.errors import KgError, OutputError, UsageError, printable
from kgcli.files import output_errors
from kgcli.inference.adapters.named import Adapters, read_adapters
from kgcli.inference.batching import AUTO, parse_size
from kgcli.inference.metadata import is_ours, sidecar
from kgcli.inference.output import OutputPlan, check_writable
from kgcli.inference.replay import read_replay
from kgcli.inference.request import Request, choose_seeds, make_request
from kgcli.runtime import check_compile, check_quantize
from kgcli.weights.folder import ModelFolder, open_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One image to generate and its output file."""

    request: Request
    path: Path
    overwrite: bool = False


@dataclass
class Plan:
    """All jobs of one run, and the failed lines of a batch."""

    model: ModelFolder
    jobs: list[Job] = field(default_factory=list)
    failures: list[tuple[str, KgError]] = field(default_factory=list)  # (which line, why)
    paths: set[Path] = field(default_factory=set)
    dtype: str = "auto"
    quantize: str = "none"
    adapters: Adapters = Adapters()
    threads: int | None = None  # of a CPU; None for the default
    compile: bool = False


class Line(SamplingConfig):
    """One line of a batch with its sampling settings; missing values come from the flags."""

    model_config = ConfigDict(strict=True)

    prompt: str
    images: list[str] = []
    negative_prompt: str | None = None
    seed: int | list[int] | None = None
    num_images: int | None = None
    out: str | None = None

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling settings only."""
        return SamplingConfig(**{name: getattr(self, name) for name in SamplingConfig.model_fields})


def plan_prompt(prompt: str | None, flags: GenerateFlags) -> Plan:
    """Return the jobs of `kg generate` and `kg edit`.

    Raises: KgError, except for single lines of a batch: those failures are in the plan.
    """
    sources = [prompt is not None, flags.batch is not None, flags.from_ is not None]
    if sum(sources) != 1:
        raise UsageError("give one of: a prompt, --batch FILE, --from IMAGE")
    if flags.allow_download and flags.from_ is None:
        raise UsageError("--allow-download needs --from, which is not given; leave it out")
    plan = open_plan(flags)
    if flags.from_ is not None:
        return _plan_replay(plan, flags, Path(flags.from_).expanduser())
    plan.adapters = _adapters(plan.model, flags)
    if flags.batch is not None:
        return _plan_batch(plan, flags, flags.batch)
    return _add_jobs(plan, flags, _requests(plan, flags, Line(prompt=prompt or "", images=flags.images or [])))


def open_session(flags: GenerateFlags) -> Plan:
    """Return a plan without jobs, for prompts that come while the model is loaded: model and adapters.

    Raises: KgError.
    """
    plan = open_plan(flags)
    plan.adapters = _adapters(plan.model, flags)
    return plan


def plan_entry(session: Plan, flags: GenerateFlags, entry: dict[str, Any]) -> Plan:
    """Return the jobs of one prompt of a session; `entry` holds the fields of `Line`, all values may be text.

    Raises: KgError.
    """
    line = _read_line(entry, strict=False)
    plan = replace(session, jobs=[], failures=[], paths=set())
    own = flags if line.out is None else replace(flags, out=line.out)
    return _add_jobs(plan, own, _requests(plan, flags, line))


def check_entry(session: Plan, flags: GenerateFlags, entry: dict[str, Any]) -> None:
    """Refuse what `plan_entry` refuses, apart from its file names."""
    _requests(session, flags, _read_line(entry, strict=False))


def open_plan(flags: GenerateFlags) -> Plan:
    """Check the flags that do not depend on a prompt, and open the model.

    Raises: KgError.
    """
    if flags.overwrite and flags.skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    if flags.offload not in OFFLOADS:
        raise UsageError(f"--offload is {flags.offload}; it must be one of {', '.join(OFFLOADS)}")
    _check_names(flags)
    check_quantize(flags.quantize or "none", flags.device)
    check_compile(bool(flags.compile), flags.device, flags.offload)
    if flags.batch_size != AUTO:
        parse_size(flags.batch_size)
    flags.sampling.check()
    plan = Plan(open_model(flags.model, flags.decoder, flags.offline), quantize=flags.quantize or "none")
    plan.compile = bool(flags.compile)
    return plan


def _check_names(flags: GenerateFlags) -> None:
    """Refuse file names that are not UTF-8 before generation: they are written to the metadata.

    Raises: UsageError.
    """
    for name in ("images", "lora", "controlnet", "controlnet_model", "map_model", "model", "decoder", "from_"):
        given = getattr(flags, name) or []
        for value in [given] if isinstance(given, str) else given:
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise UsageError(f"{printable(value)} is a file name that is not UTF-8; rename the file")


def _plan_replay(plan: Plan, flags: GenerateFlags, source: Path) -> Plan:
    """Plan an image again from its metadata; given flags override them."""
    given = bool(flags.lora or flags.controlnet)  # they replace the adapters of the metadata
    replay = read_replay(
        source,
        plan.model,
        flags.images or [],
        chosen=bool(flags.model or flags.decoder),
        controlnet_models=flags.controlnet_model or [],
        map_models=flags.map_model or [],
        with_adapters=not given,
        allow_download=flags.allow_download,
    )
    plan.dtype, plan.threads = replay.dtype, replay.threads
    if flags.compile is None:
        check_compile(replay.compile, flags.device, flags.offload)
        plan.compile = replay.compile
    if flags.quantize is None:
        check_quantize(replay.quantize, flags.device)
        plan.quantize = replay.quantize
    plan.adapters = _adapters(plan.model, flags) if given else replay.adapters
    changed = {name: value for name, value in _given(flags).items() if value is not None}
    line = Line(**{**replay.line, **replay.sampling.given(), **changed, **flags.sampling.given()})
    requests = _requests(plan, flags, line)
    if flags.batch_size == "1" and (flags.seed, flags.num_images) == (None, None):
        requests = [replace(request, row=replay.row) for request in requests]
    return _add_jobs(plan, flags, requests)


def _plan_batch(plan: Plan, flags: GenerateFlags, source: str) -> Plan:
    """Plan the jobs of each line; failing lines are recorded."""
    if flags.images:
        raise UsageError('--image cannot be used with --batch: write "images": [...] in the line')
    found: list[tuple[str, Line, list[Request]]] = []
    for label, entry in read_entries(source):
        try:
            from_table = Path(source).suffix.lower() in TABLES
            if from_table and isinstance(entry, dict) and "images" in entry:
                entry = {**entry, "images": [entry["images"]]}
            line = _read_line(entry, strict=not from_table)  # cells of a table are all text
            # Thousands of opened images would not fit in memory.
            requests = [
                replace(request, images=tuple(image.without_pixels() for image in request.images))
                for request in _requests(plan, flags, line)
            ]
        except KgError as error:
            plan.failures.append((label, error))
            continue
        found.append((label, line, requests))
    total = sum(len(requests) for _, line, requests in found if line.out is None) + len(plan.failures)
    shared = OutputPlan.parse(flags.out, total)
    index = 0
    for label, line, requests in found:
        try:
            names = shared if line.out is None else OutputPlan.parse(line.out, len(requests))
            for number, request in enumerate(requests, start=1):
                index += line.out is None
                _add_job(plan, flags, Job(request, names.path(request, index if line.out is None else number)))
        except (UsageError, OutputError) as error:
            plan.failures.append((label, error))
    return plan


def _add_jobs(plan: Plan, flags: GenerateFlags, requests: list[Request]) -> Plan:
    names = OutputPlan.parse(flags.out, len(requests))
    for index, request in enumerate(requests, start=1):
        _add_job(plan, flags, Job(request, names.path(request, index)))
    return plan


def _add_job(plan: Plan, flags: GenerateFlags, job: Job) -> None:
    """Add a job unless its file exists.

    Raises: UsageError, OutputError.
    """
    if job.path in plan.paths:
        raise UsageError(f"two images would be named {job.path}; write {{index}} or {{seed}} in --out")
    beside = sidecar(job.path)
    for named in (job.path, beside or job.path):
        with output_errors(named):  # a name that is too long, once its fields are filled in
            named.is_file()
    there = job.path.is_file()
    # A run killed after writing an image may have left it without its metadata file.
    unfinished = there and beside is not None and not beside.exists() and not flags.no_metadata and is_ours(job.path)
    if there and flags.skip_existing and not unfinished:
        _log.info("%s already exists", job.path)
        return
    overwrite = flags.overwrite or (flags.skip_existing and unfinished)
    for path in (job.path, beside):
        if path is not None and path.is_file() and not overwrite:
            raise UsageError(f"{path} already exists; give --overwrite, --skip-existing or another --out")
    check_writable(job.path)
    plan.paths.add(job.path)
    plan.jobs.append(replace(job, overwrite=overwrite))


def _requests(plan: Plan, flags: GenerateFlags, line: Line) -> list[Request]:
    """Return one request for each seed of a line."""
    merged = {**_given(flags), **line.given()}
    seeds = choose_seeds(merged["seed"], merged["num_images"])
    first = make_request(
        plan.model,
        line.prompt,
        images=line.images,
        negative_prompt=merged["negative_prompt"] or "",
        seed=seeds[0],
        sampling=line.sampling.over(flags.sampling),
        adapters=plan.adapters,
    )
    return [first, *(replace(first, seed=seed) for seed in seeds[1:])]


def _given(flags: GenerateFlags) -> dict[str, Any]:
    """Return the flags other than sampling, by the names of `Line`."""
    return {"negative_prompt": flags.negative_prompt, "num_images": flags.num_images, "seed": flags.seed or None}


def _adapters(model: ModelFolder, flags: GenerateFlags) -> Adapters:
    if not (flags.lora or flags.controlnet or flags.controlnet_model or flags.map_model):
        return Adapters()
    return read_adapters(
        model,
        loras=flags.lora or [],
        controls=flags.controlnet or [],
        controlnet_models=flags.controlnet_model or [],
        map_models=flags.map_model or [],
    )


def _read_line(entry: Any, strict: bool) -> Line:
    """Read a prompt, or a mapping with the fields of `Line`.

    Raises: UsageError.
    """
    if isinstance(entry, KgError):
        raise entry
    if isinstance(entry, str):
        return Line(prompt=entry)
    if not isinstance(entry, dict):
        raise UsageError('not a JSON object; write {"prompt": "..."}')
    try:
        return Line.model_validate(entry, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

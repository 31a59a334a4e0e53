"""From flags to jobs: every prompt, picture, setting and file name checked before torch loads."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from kgcli.cli.options import GenerateFlags
from kgcli.config import OFFLOADS, SamplingConfig
from kgcli.errors import KgError, MissingError, UsageError
from kgcli.inference.adapters import Adapters, read_adapters
from kgcli.inference.metadata import sidecar
from kgcli.inference.output import OutputError, OutputPlan, check_writable
from kgcli.inference.replay import read_replay
from kgcli.inference.request import Request, make_request, random_seed
from kgcli.runtime import check_quantize
from kgcli.weights.folder import ModelFolder, open_model

_log = logging.getLogger(__name__)

MAX_PICTURES = 100_000  # of one run; more is a slip of the finger


@dataclass(frozen=True)
class Job:
    """One picture to draw and where it goes."""

    request: Request
    path: Path


@dataclass
class Plan:
    """All jobs of one run, and the lines of a batch that make none."""

    model: ModelFolder
    jobs: list[Job] = field(default_factory=list)
    failures: list[tuple[str, KgError]] = field(default_factory=list)  # (which line, why)
    paths: set[Path] = field(default_factory=set)
    dtype: str = "auto"
    quantize: str = "none"
    adapters: Adapters = Adapters()


class Line(SamplingConfig):
    """One line of a batch, its sampling settings beside the rest; what it does not say comes from the flags."""

    model_config = ConfigDict(strict=True)

    prompt: str
    images: list[str] = []
    negative_prompt: str | None = None
    seed: int | list[int] | None = None
    num_images: int | None = None
    out: str | None = None

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling settings alone."""
        return SamplingConfig(**{name: getattr(self, name) for name in SamplingConfig.model_fields})


def plan_prompt(prompt: str | None, flags: GenerateFlags) -> Plan:
    """The jobs of `kg generate` and `kg edit`.

    Raises: KgError of whatever is wrong, but for single lines of a batch: those are in the plan.
    """
    sources = [prompt is not None, flags.batch is not None, flags.from_ is not None]
    if sum(sources) != 1:
        raise UsageError("give one of: a prompt, --batch FILE, --from IMAGE")
    if flags.overwrite and flags.skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    if flags.offload not in OFFLOADS:
        raise UsageError(f"--offload is {flags.offload}; it must be one of {', '.join(OFFLOADS)}")
    check_quantize(flags.quantize or "none", flags.device)
    flags.sampling.check()
    plan = Plan(open_model(flags.model, flags.decoder, flags.offline), quantize=flags.quantize or "none")
    if flags.from_ is not None:
        return _plan_replay(plan, flags, Path(flags.from_))
    plan.adapters = _adapters(plan.model, flags)
    if flags.batch is not None:
        return _plan_batch(plan, flags, flags.batch)
    return _add_jobs(plan, flags, _requests(plan, flags, Line(prompt=prompt or "", images=flags.images or [])))


def _plan_replay(plan: Plan, flags: GenerateFlags, source: Path) -> Plan:
    """The picture of a file's metadata again; flags that are given change it."""
    given = bool(flags.lora or flags.controlnet)  # they take the place of all that was used
    replay = read_replay(
        source,
        plan.model,
        flags.images or [],
        chosen=bool(flags.model or flags.decoder),
        controlnet_models=flags.controlnet_model or [],
        map_models=flags.map_model or [],
        with_adapters=not given,
    )
    plan.dtype = replay.dtype
    if flags.quantize is None:
        check_quantize(replay.quantize, flags.device)
        plan.quantize = replay.quantize
    plan.adapters = _adapters(plan.model, flags) if given else replay.adapters
    changed = {name: value for name, value in _given(flags).items() if value is not None}
    line = Line(**{**replay.line, **replay.sampling.given(), **changed, **flags.sampling.given()})
    return _add_jobs(plan, flags, _requests(plan, flags, line))


def _plan_batch(plan: Plan, flags: GenerateFlags, source: str) -> Plan:
    """The jobs of each line; a bad one is put aside."""
    if flags.images:
        raise UsageError('--image has no place in a batch: write "images": [...] in the line')
    found: list[tuple[str, Line, list[Request]]] = []
    for label, text in _read_lines(source):
        try:
            line = _read_line(text, as_json=source.endswith(".jsonl") or text.lstrip().startswith("{"))
            # Thousands of opened pictures would not fit into memory.
            requests = [
                replace(request, pictures=tuple(picture.without_pixels() for picture in request.pictures))
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
        names = shared if line.out is None else OutputPlan.parse(line.out, len(requests))
        try:
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
    """Take a job up unless its file is there.

    Raises: UsageError, OutputError.
    """
    if job.path in plan.paths:
        raise UsageError(f"two pictures would be called {job.path}; write {{index}} or {{seed}} in --out")
    if job.path.is_file() and flags.skip_existing:
        _log.info("%s is there already", job.path)
        return
    for path in (job.path, sidecar(job.path)):
        if path is not None and path.is_file() and not flags.overwrite:
            raise UsageError(f"{path} is there already; give --overwrite, --skip-existing or another --out")
    check_writable(job.path)
    plan.paths.add(job.path)
    plan.jobs.append(job)


def _requests(plan: Plan, flags: GenerateFlags, line: Line) -> list[Request]:
    """One request for each seed of a line."""
    merged = {**_given(flags), **line.given()}
    seeds = _seeds(merged["seed"], merged["num_images"])
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
    """Return what flags say beside sampling, by the names of `Line`."""
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


def _seeds(given: int | list[int] | None, num_images: int | None) -> list[int]:
    """Several seeds give one picture each; from one seed, or none, the pictures count up.

    Raises: UsageError.
    """
    if num_images is not None and not 1 <= num_images <= MAX_PICTURES:
        raise UsageError(f"--num-images is {num_images}; it must be from 1 to {MAX_PICTURES}")
    seeds = [given] if isinstance(given, int) else list(given or [])
    if len(seeds) > 1:
        if num_images not in (None, len(seeds)):
            raise UsageError(f"{len(seeds)} seeds give {len(seeds)} pictures; leave --num-images {num_images} out")
        return seeds
    first = seeds[0] if seeds else random_seed()
    return [first + offset for offset in range(num_images or 1)]


def _read_lines(source: str) -> Iterator[tuple[str, str]]:
    """(`line 3`, its text) of each line that is not blank.

    Raises: MissingError.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise MissingError(f"the batch {source} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise MissingError(f"the batch {source} is no UTF-8 text (byte {error.start})") from None
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield f"line {number}", text


def _read_line(text: str, as_json: bool) -> Line:
    """A prompt, or a JSON object with the fields of `Line`.

    Raises: UsageError.
    """
    if not as_json:
        return Line(prompt=text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError('no JSON object; write {"prompt": "..."}')
    try:
        return Line(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

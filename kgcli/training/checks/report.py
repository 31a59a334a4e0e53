"""The plan of a run, as `--dry-run` prints it: parts, memory, disk, work, time, launch lines, and what is missing."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kgcli.data.loader import Batches
from kgcli.data.sources import open_source
from kgcli.data.sources.base import Source
from kgcli.data.sources.mixture import kind_of_steps, weigh_by_tokens
from kgcli.errors import ConfigError, MissingError
from kgcli.recipe import Recipe, command_of
from kgcli.runtime import environment_shard
from kgcli.training import checkpoint
from kgcli.training.caches.moments import check_pool_source
from kgcli.training.checks.compute import ASSUMED, SampleSize, count_step, find_trained
from kgcli.training.checks.data import check_batch_size, check_hidden, check_kinds, check_source
from kgcli.training.checks.memory import (
    GIB,
    LATENT_BYTES,
    Sizes,
    describe_disk,
    describe_memory,
    hidden_bytes,
    measure,
)
from kgcli.training.checks.shapes import AbsentTokenizer, ShapeSetup
from kgcli.training.precision import check_sharded_scalars
from kgcli.training.resume import recipe_changes
from kgcli.training.stages import check_taken, find_stage, make_setup, make_stage
from kgcli.training.stages.base import Stage
from kgcli.training.stages.parts import check_parts
from kgcli.training.watch.trackers import check_trackers
from kgcli.training.watch.validation import open_held_out

MAX_SHOWN = 64  # samples that a dry run renders
WORLDS = (8, 64)  # processes of the memory table
DAY = 86400  # seconds


@dataclass(frozen=True)
class Plan:
    """Lines about a run that has not begun, and the parts that this machine lacks for it."""

    lines: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def describe(recipe: Recipe, resume: str = "auto", tflops: float | None = None) -> Plan:
    """Check a recipe as a run does, and count what the run would take.

    Args:
        resume: as of the run
        tflops: what all processes reach together, in 10^12 FLOP/s; for an estimate of the time

    Raises:
        ConfigError, IncompatibleError: the recipe cannot be run, or not resumed.
        MissingError: a part is missing without which a base stage has no sizes.
    """
    stage_type = find_stage(recipe.stage)
    num_processes = environment_shard()[1]
    check_batch_size(recipe, num_processes)
    missing: list[str] = []
    source = _open(recipe, stage_type, missing)
    check_hidden(recipe, recipe.train in stage_type.takes_hidden, source)
    _check_watch(recipe, stage_type, missing)
    stage, notes = _build(recipe, stage_type, source, missing)
    stage.freeze()
    if recipe.pack is not None:
        stage.pack(recipe.pack)
    check_parts(stage, recipe)
    notes += _check_scalars(stage, recipe, num_processes)
    sizes = measure(stage, recipe)
    shown, size = None, None
    if source is not None and not isinstance(getattr(stage, "tokenizer", None), AbsentTokenizer):
        shown, size = _describe_batch(stage, recipe, source)
    lines = [f"{recipe.stage}: {recipe.steps} steps of {recipe.data.batch_size} samples -> {recipe.output_dir}"]
    lines += [_describe_resume(recipe, resume), *_describe_parts(stage)]
    lines += [*describe_memory(sizes, WORLDS), _describe_disk(stage, recipe, sizes, source, size)]
    if shown is not None:
        lines.append(shown)
    if stage_type.has_shapes:
        lines += _describe_work(stage, recipe, size, tflops)
    lines += _describe_launch(recipe)
    lines += [*notes, *(f"missing: {what}" for what in missing)]
    return Plan(tuple(line if place == 0 else f"  {line}" for place, line in enumerate(lines)), tuple(missing))


def _open(recipe: Recipe, stage_type: type[Stage], missing: list[str]) -> Source | None:
    try:
        source = open_source(recipe.data, recipe.image_size, stage_type.use)
    except MissingError:
        if not stage_type.has_shapes:
            raise
        missing += _missing_data(recipe, stage_type)
        return None
    check_source(recipe.stage, stage_type.needs_with(recipe.options), source)
    check_kinds(recipe.stage, stage_type.kinds, recipe.data)
    if stage_type.uses_pool:
        check_pool_source(source)
    return source


def _check_watch(recipe: Recipe, stage_type: type[Stage], missing: list[str]) -> None:
    """Check trackers and held-out samples as a run does."""
    try:
        check_trackers(recipe)
    except MissingError as error:
        missing.append(str(error))
    try:
        if recipe.validation.every is not None:
            open_held_out(recipe, stage_type)
    except MissingError as error:
        missing.append(str(error))


def _missing_data(recipe: Recipe, stage_type: type[Stage]) -> list[str]:
    """Return what each source lacks."""
    lacking = []
    for cfg in recipe.data.sources:
        try:
            open_source(recipe.data.model_copy(update={"sources": (cfg,)}), recipe.image_size, stage_type.use)
        except MissingError as error:
            lacking.append(str(error))
    return lacking


def _build(
    recipe: Recipe, stage_type: type[Stage], source: Source | None, missing: list[str]
) -> tuple[Stage, list[str]]:
    """Return the stage, on the meta device where it can be, and lines about parts on the Hub."""
    texts = source.texts if source is not None else (lambda num, seed: [])
    if not stage_type.has_shapes:
        return make_stage(recipe, texts), []
    setup = make_setup(recipe, texts, ShapeSetup)
    stage = setup.build(stage_type)
    check_taken(setup, [*setup.found, *setup.missing, *setup.to_fetch])
    missing += setup.missing.values()
    return stage, list(setup.to_fetch.values())


def _check_scalars(stage: Stage, recipe: Recipe, num_processes: int) -> list[str]:
    """Check a stage's scalars as a run on several processes does; on one, return what would stop such a run."""
    try:
        check_sharded_scalars(stage, recipe)
    except ConfigError as error:
        if num_processes > 1:
            raise
        return [f"runs on one process alone: {error}"]
    return []


def _describe_resume(recipe: Recipe, resume: str) -> str:
    found = checkpoint.find(Path(recipe.output_dir), resume)
    if found is None:
        return "starts anew"
    changes = recipe_changes(found / "recipe.yaml", recipe)
    return f"resumes from {found}" + (f"; {', '.join(changes)}" if changes else "")


def _describe_parts(stage: nn.Module) -> list[str]:
    parts = []
    for name, child in stage.named_children():
        deeper = list(child.named_children()) if name in ("model", "diffusion") else []
        parts += [(f"{name}.{inner}", part) for inner, part in deeper] or [(name, child)]
    rows = [(name, list(part.parameters())) for name, part in parts]
    lines = []
    for name, parameters in [*rows, ("in all", list(stage.parameters()))]:
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        lines.append(f"{name:24} {total:>14,} parameters, {trained:>14,} trained")
    return lines


def _describe_disk(stage: Stage, recipe: Recipe, sizes: Sizes, source: Source | None, sample: SampleSize | None) -> str:
    rows = (source.num_rows if source is not None else None) or 0
    diffusion, model = getattr(stage, "diffusion", None), getattr(stage, "model", None)
    pool, hidden = 0, 0.0
    if stage.uses_pool and diffusion is not None:
        side = recipe.image_size // diffusion.pixels_per_latent
        pool = rows * side * side * (2 * diffusion.vae.config.latent_channels * LATENT_BYTES + 1)
    if recipe.data.hidden and sample is not None and model is not None:
        hidden = rows * sample.tokens * hidden_bytes(model.cfg.mllm.width, recipe.precision)
    place = Path(recipe.output_dir).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return f"{describe_disk(stage, recipe, sizes, pool, hidden)}; {free / GIB:.0f} GiB are free in {place}"


def _describe_batch(stage: Stage, recipe: Recipe, source: Source) -> tuple[str, SampleSize]:
    """Return the shapes and size of a batch, and the mean sizes of a sample; a large one by its first samples."""
    data = recipe.data
    size = min(data.batch_size, MAX_SHOWN)
    bucket = data.bucket if size == data.batch_size else 1
    collator = stage.collator(None)
    if data.weigh == "tokens":
        weigh_by_tokens(source, collator.length)
    # A run encodes moments first; without a text encoder there is no tokenizer of its own.
    left_out = {"moments"} if collator.clip_tokenizer is not None else {"moments", "clip_tokens"}
    collator.needs = collator.needs - left_out
    kind_of = kind_of_steps(source) if bucket > 1 else None
    batch = Batches(source, collator, batch_size=size, bucket=bucket, seed=data.seed, kind_of=kind_of)[0]
    fields = batch.fields()
    num_bytes = sum(value.numel() * value.element_size() for value in fields.values()) * data.batch_size / size
    shown = "one batch" if size == data.batch_size else f"{size} of the samples of one batch"
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in fields.items())
    tokens = 0.0 if batch.token_mask is None else batch.token_mask.numel() / size
    images = 0.0 if batch.images is None else len(batch.images) / size
    return f"{shown}: {shapes}; a full batch takes {num_bytes / 2**20:.0f} MiB", SampleSize(tokens, images)


def _describe_work(stage: Stage, recipe: Recipe, size: SampleSize | None, tflops: float | None) -> list[str]:
    """Return tokens and FLOPs of a step, and the time where a rate is known."""
    told = "padded" if size is not None else "assumed, as data or tokenizer are not here"
    size = size or SampleSize(*ASSUMED[recipe.stage])
    trained = find_trained(stage)
    costs = count_step(stage.requires_grad_(False), recipe, size, trained)
    samples = recipe.data.batch_size
    per_sample = sum(cost.forward + cost.backward for cost in costs)
    parts = ", ".join(f"{cost.part} {cost.forward / 1e12:.3g} + {cost.backward / 1e12:.3g}" for cost in costs)
    tokens = samples * size.tokens
    return [
        f"a step: {samples:,} samples, {tokens:,.0f} tokens and {samples * size.images:,.0f} images ({told}: "
        f"{size.tokens:.0f} tokens, {size.images:.1f} images a sample); in all {samples * recipe.steps:,} samples",
        f"work of a sample, TFLOP forward + backward: {parts}",
        f"work of a step {samples * per_sample / 1e12:,.4g} TFLOP, in all {recipe.steps * samples * per_sample:.3g} "
        "FLOP",
        *_describe_time(recipe, per_sample, tflops),
    ]


def _describe_time(recipe: Recipe, per_sample: float, tflops: float | None) -> list[str]:
    lines = []
    samples = recipe.steps * recipe.data.batch_size
    if (rate := _measured_rate(recipe)) is not None:
        lines.append(f"time at {rate:.3g} samples/s, as this run measured: {_span(samples / rate)}")
    if tflops is not None:
        lines.append(f"time at {tflops:g} TFLOP/s over all processes: {_span(samples * per_sample / tflops / 1e12)}")
    return lines or ["time: give --tflops, the TFLOP/s that all processes reach together, for an estimate"]


def _measured_rate(recipe: Recipe) -> float | None:
    """Return samples per second of the run's last row, None before there is one."""
    path = Path(recipe.output_dir) / "metrics.jsonl"
    rows = [row for row in path.read_text("utf-8").splitlines() if row.endswith("}")] if path.is_file() else []
    rate = json.loads(rows[-1]).get("samples_per_second") if rows else None
    return float(rate) if rate else None


def _span(seconds: float) -> str:
    for name, unit in (("days", DAY), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _describe_launch(recipe: Recipe) -> list[str]:
    command, size, accumulate = command_of(recipe.stage), recipe.data.batch_size, recipe.accumulate
    num = math.gcd(size, 8)  # processes that divide the batch
    settings = "" if size % (num * accumulate) == 0 else f" accumulate={math.gcd(size // num, accumulate)}"
    return [
        f"start with: kg {command} RECIPE",
        f"on {num} GPUs of a machine: torchrun --nproc_per_node={num} -m kgcli {command} RECIPE{settings}",
        f"or by accelerate's settings: accelerate launch -m kgcli {command} RECIPE",
    ]

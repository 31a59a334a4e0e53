"""A summary of what a run would train, freeze, read and write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kgcli.data.loader import Batches
from kgcli.recipe import command_of

if TYPE_CHECKING:
    from kgcli.training.loop import Run

MAX_SHOWN = 64  # samples that a dry run renders


def describe(run: Run) -> str:
    """Return the lines that `--dry-run` prints."""
    recipe = run.recipe
    lines = [f"{recipe.stage}: {recipe.steps} steps of {recipe.data.batch_size} samples -> {run.folder}"]
    for name, part in _parts(run.stage):
        total = sum(p.numel() for p in part.parameters())
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        lines.append(f"  {name:24} {total:>12,} parameters, {trained:>12,} trained")
    trained = sum(p.numel() for p in run.trained.values())
    total = sum(p.numel() for p in run.stage.parameters())
    copies = 4 if recipe.ema_decay is None else 5  # weights, gradients, two moments, running mean
    memory = 4 * (total + (copies - 1) * trained)
    disk = 4 * trained * copies * recipe.keep_checkpoints
    lines.append(f"  memory without activations {memory / 2**20:.0f} MiB, checkpoints on disk {disk / 2**20:.0f} MiB")
    lines.append("  " + _describe_batch(run))
    command = command_of(recipe.stage)
    lines.append(f"  start with: kg {command} RECIPE, or accelerate launch -m kgcli {command} RECIPE")
    return "\n".join(lines)


def _describe_batch(run: Run) -> str:
    """Return the shapes and size of a batch; those of a large one are extrapolated from its first samples."""
    data = run.recipe.data
    size = min(data.batch_size, MAX_SHOWN)
    bucket = data.bucket if size == data.batch_size else 1
    collator = run.stage.collator(None)
    collator.needs = collator.needs - {"moments"}  # which a run encodes first
    fields = Batches(run.source, collator, batch_size=size, bucket=bucket, seed=data.seed)[0].fields()
    num_bytes = sum(value.numel() * value.element_size() for value in fields.values()) * data.batch_size / size
    shown = "one batch" if size == data.batch_size else f"{size} of the samples of one batch"
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in fields.items())
    return f"{shown}: {shapes}; a full batch takes {num_bytes / 2**20:.0f} MiB"


def _parts(stage: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = []
    for name, child in stage.named_children():
        deeper = list(child.named_children()) if name in ("model", "diffusion") else []
        parts += [(f"{name}.{inner}", part) for inner, part in deeper] or [(name, child)]
    return parts

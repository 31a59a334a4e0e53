"""What a run would train, freeze, read and write, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kgcli.data.loader import Batches

if TYPE_CHECKING:
    from kgcli.training.loop import Run

PAPER_STAGES = ("pretrain", "align", "instruct")  # commands of their own; the others are below `kg base`


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
    collator = run.stage.collator(None)
    collator.needs = collator.needs - {"moments"}  # which a run encodes first
    batch = Batches(run.source, collator, batch_size=recipe.data.batch_size)[0]
    lines.append("  one batch: " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.fields().items()))
    command = recipe.stage if recipe.stage in PAPER_STAGES else f"base {recipe.stage}"
    lines.append(f"  start with: kg {command} RECIPE, or accelerate launch -m kgcli {command} RECIPE")
    return "\n".join(lines)


def _parts(stage: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = []
    for name, child in stage.named_children():
        deeper = list(child.named_children()) if name in ("model", "diffusion") else []
        parts += [(f"{name}.{inner}", part) for inner, part in deeper] or [(name, child)]
    return parts

"""Memory and disk that a run takes, from the shapes of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from kgcli.recipe import Recipe
from kgcli.training.optim import is_matrix

GIB = 2**30
FP32 = 4  # bytes of a weight, gradient, moment or running mean, whatever the precision of the forward pass
LATENT_BYTES = 2  # of a cached VAE moment


@dataclass(frozen=True)
class Sizes:
    """Bytes of a stage without activations."""

    frozen: int
    trained: int
    optimizer: int
    mean: int  # running mean of the trained weights

    @property
    def gradients(self) -> int:
        """Bytes of the gradients."""
        return self.trained

    @property
    def total(self) -> int:
        """Bytes of all on one process that holds them whole."""
        return self.frozen + 2 * self.trained + self.optimizer + self.mean

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return self.trained + self.optimizer + self.mean


def measure(stage: nn.Module, recipe: Recipe) -> Sizes:
    """Return the sizes of a stage whose trained parameters are marked."""
    named = list(stage.named_parameters())
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    buffers = sum(buffer.numel() for buffer in stage.buffers())
    # AdamW keeps two moments, Muon one.
    one = sum(p.numel() for name, p in named if p.requires_grad and is_matrix(name, p)) if recipe.optim.muon_lr else 0
    return Sizes(
        frozen=FP32 * (sum(p.numel() for _, p in named) - trained + buffers),
        trained=FP32 * trained,
        optimizer=FP32 * (2 * trained - one),
        mean=0 if recipe.ema_decay is None else FP32 * trained,
    )


def describe_memory(sizes: Sizes, worlds: tuple[int, ...]) -> list[str]:
    """Return a table: bytes of one process that holds all, as with ddp, and of one of several with fsdp2."""
    head = ("memory of a process, GiB", "frozen", "weights", "gradients", "optimizer", "mean", "in all")
    rows = [("one process, or ddp", 1), *((f"fsdp2 on {world}", world) for world in worlds if world > 1)]
    columns = (sizes.frozen, sizes.trained, sizes.gradients, sizes.optimizer, sizes.mean, sizes.total)
    lines = [f"{head[0]:26}" + "".join(f"{name:>11}" for name in head[1:])]
    for name, world in rows:
        lines.append(f"{name:26}" + "".join(f"{gib(value / world):>11}" for value in columns))
    return [*lines, "activations come on top: data.batch_size, accumulate and activation_checkpointing decide them"]


def hidden_bytes(width: int, precision: str) -> int:
    """Return the bytes of a token of cached hidden states: the states, and the token's id."""
    return width * (4 if precision == "fp32" else 2) + 8


def describe_disk(stage: nn.Module, recipe: Recipe, sizes: Sizes, pool_bytes: int, hidden: float = 0.0) -> str:
    """Return a line: checkpoints with the one being written, the result, cached VAE moments and hidden states.

    Args:
        hidden: bytes of the hidden states, were all rows as long as those of one batch
    """
    result = FP32 * sum(p.numel() for p in stage.parameters())
    kept = (recipe.keep_checkpoints + 1) * sizes.checkpoint
    caches = f", VAE moments {gib(pool_bytes)} GiB" if pool_bytes else ""
    caches += f", hidden states about {gib(hidden)} GiB" if hidden else ""
    return (
        f"disk: a checkpoint {gib(sizes.checkpoint)} GiB, {recipe.keep_checkpoints} kept and one being written "
        f"{gib(kept)} GiB, the result at most {gib(result)} GiB{caches}"
    )


def gib(num_bytes: float) -> str:
    """Return bytes in GiB, small ones with more digits."""
    value = num_bytes / GIB
    return f"{value:.1f}" if value >= 0.95 or not value else f"{value:.3f}"

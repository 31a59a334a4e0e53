"""Memory and speed of a stage's parts: activations computed twice instead of kept, and compilation."""

from __future__ import annotations

import functools

from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from kgcli.errors import ConfigError
from kgcli.model.layers import TransformerLayer
from kgcli.model.vision import VisionBlock
from kgcli.recipe import Recipe
from kgcli.training.stages.base import Stage

FIXED_SHAPES = ("unet", "controlnet", "clip", "dino", "vision")  # parts whose inputs have one shape at every step


def checkpoint_activations(stage: Stage, recipe: Recipe) -> None:
    """Let the layers of the parts in `activation_checkpointing` keep their inputs alone, and run again in the backward
    pass: same losses and gradients, less memory, a third more time. Randomness is replayed.

    Raises: ConfigError: the stage has no such part.
    """
    for name in recipe.activation_checkpointing:
        for part in _find(stage, name, "activation_checkpointing"):
            _checkpoint(part, name)


def compile_parts(stage: Stage, recipe: Recipe) -> None:
    """Compile the parts in `compile`, or with `compile: true` the stage's heaviest.

    Raises: ConfigError: the stage has no such part.
    """
    chosen = recipe.compile
    names = (stage.compiles if chosen else ()) if isinstance(chosen, bool) else chosen
    for name in names:
        for part in _find(stage, name, "compile"):
            part.compile(dynamic=name not in FIXED_SHAPES)


def check_parts(stage: Stage, recipe: Recipe) -> None:
    """Check the parts that a recipe names. Raises: ConfigError."""
    checkpoint_activations(stage, recipe)
    for name in () if isinstance(recipe.compile, bool) else recipe.compile:
        _find(stage, name, "compile")


def _find(stage: Stage, name: str, key: str) -> list[nn.Module]:
    parts = stage.parts()
    if name not in parts:
        known = f"has {', '.join(parts)}" if parts else "has none"
        raise ConfigError(f"{key}: stage {stage.setup.stage} has no part {name}; it {known}")
    return parts[name]


def _checkpoint(part: nn.Module, name: str) -> None:
    if isinstance(part, ModelMixin):
        part.enable_gradient_checkpointing()
    elif isinstance(part, PreTrainedModel):
        part.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        blocks = [module for module in part.modules() if isinstance(module, TransformerLayer | VisionBlock)]
        if not blocks:
            raise ConfigError(f"activation_checkpointing: the activations of {name} can only be kept")
        for block in blocks:
            # The method alone is replaced: the names of weights stay as they are.
            setattr(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010

"""Differences between the recipe of a checkpoint and that of the run that resumes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.recipe import Recipe, load_recipe

# They change output or speed, not the training. `data.rendered` does: it rounds the masks of subjects differently.
_WITHOUT_EFFECT = (
    *("output_dir", "log_every", "save_every", "sample_every", "keep_checkpoints"),
    *("accumulate", "parallel", "async_save", "compile", "activation_checkpointing"),
    *("validation", "trackers", "max_skipped"),
    *("data.num_workers", "data.moments", "data.hidden"),
)
# The weights of a checkpoint mean nothing to another of these.
_FIXED = ("stage", "model", "parts", "image_size", "train", "lora")


def recipe_changes(saved: Path, recipe: Recipe) -> list[str]:
    """Return the differences between the recipe saved with a checkpoint and the resuming one, a line each.

    Raises: IncompatibleError if the checkpoint does not fit this recipe.
    """
    try:
        before = load_recipe(str(saved))
    except (ConfigError, MissingError) as error:
        return [f"it cannot be compared ({error})"]
    changes = []
    one, other = dict(_flatten(before.model_dump())), dict(_flatten(recipe.model_dump()))
    for key in [*one, *(key for key in other if key not in one)]:
        if one.get(key) == other.get(key) or key.startswith(_WITHOUT_EFFECT):
            continue
        change = f"{key} was {one.get(key, 'not set')}, is {other.get(key, 'not set')}"
        if key.split(".")[0] in _FIXED:
            raise IncompatibleError(
                f"{saved.parent} belongs to another recipe: {change}; use the recipe beside it, or start anew with "
                "--resume none"
            )
        changes.append(change)
    return changes


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

"""A training run's checkpoints: one self-describing folder each, written whole or not at all, rotated, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kgcli.errors import MissingError, UsageError

FOLDER = "checkpoints"
# What reading a file cut short raises, by where it was cut.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, SafetensorError, UnpicklingError)


def save(run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], recipe: str, keep: int) -> Path:
    """Write `checkpoints/step_N` (N = steps done) under a temporary name, rename it, keep the newest `keep`.

    Those of later steps go: they belong to a run that was given up by starting anew or from an older checkpoint.
    """
    folder = run / FOLDER / f"step_{step:07d}"
    partial = folder.with_name("." + folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "model.safetensors")
    torch.save(state, partial / "state.pt")
    (partial / "recipe.yaml").write_text(recipe, "utf-8")
    (partial / "trainer.json").write_text(json.dumps({"step": step}) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    steps = list_steps(run)
    last = steps.index(folder) + 1
    for other in [*steps[: max(0, last - keep)], *steps[last:]]:
        shutil.rmtree(other)
    return folder


def load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Step, weights and optimizer state of a checkpoint.

    Raises:
        MissingError: a file is not there or damaged.
    """
    try:
        step = int(json.loads((folder / "trainer.json").read_text("utf-8"))["step"])
        weights = load_file(folder / "model.safetensors")
        state = torch.load(folder / "state.pt", weights_only=True)
    except UNREADABLE as error:
        raise MissingError(
            f"checkpoint {folder} is damaged ({type(error).__name__}); resume from another one"
        ) from error
    return step, weights, state


def list_steps(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step_*"))


def find(run: Path, resume: str) -> Path | None:
    """The checkpoint that `resume` asks for: auto (newest, if any), true (newest), none, or a folder.

    Raises:
        UsageError, MissingError: it asks for one that is not there.
    """
    if resume == "none":
        return None
    if resume in ("auto", "true"):
        steps = list_steps(run)
        if not steps and resume == "true":
            raise MissingError(f"{run} holds no checkpoint to resume from; --resume auto starts anew")
        return steps[-1] if steps else None
    folder = Path(resume)
    if not (folder / "trainer.json").is_file():
        raise UsageError(f"--resume {resume}: write auto, true, none or the folder of a checkpoint")
    return folder

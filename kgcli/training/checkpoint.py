"""A training run's checkpoints: one self-describing folder each, written whole or not at all, rotated, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kgcli.errors import MissingError, UsageError
from kgcli.files import output_errors, temporary_name, whole_folder, write_whole
from kgcli.reading import read_json
from kgcli.training import sharded
from kgcli.training.chains import STEPS
from kgcli.weights.tensor_files import check_archive, save_state, save_tensors

FOLDER = "checkpoints"
CACHES = ("pool", "hidden", "validation-pool")  # folders that say what they were made of: valid for the next run too
RETIRED = "retired"  # folder of earlier runs, moved aside by --resume none
# Errors of reading a truncated file, by where it was cut.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, SafetensorError, UnpicklingError)


def save(run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], recipe: str, keep: int) -> Path:
    """Write `checkpoints/step_N` (N = steps done) under a temporary name, rename it, keep the newest `keep`.

    Later checkpoints are removed: they belong to a run that was abandoned for an older checkpoint or a new start.
    """
    folder = folder_of(run, step)
    with whole_folder(folder, overwrite=True) as partial:
        fill(partial, step, weights, state, recipe)
    rotate(run, folder, keep)
    return folder


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return run / FOLDER / f"step_{step:07d}"


def fill(partial: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], recipe: str) -> None:
    """Write the files of a checkpoint into a folder, which may hold tensors sharded over processes already."""
    save_tensors(partial / "model.safetensors", weights)
    save_state(partial / "state.pt", state)
    write_whole(partial / "recipe.yaml", recipe)
    files = {"sharded": sharded.file_sizes(partial)} if is_sharded(partial) else {}
    write_whole(partial / "trainer.json", json.dumps({"step": step, **files}) + "\n")


def rotate(run: Path, folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to `folder`; later ones belong to an abandoned run."""
    steps = list_steps(run)
    last = steps.index(folder) + 1
    for other in [*steps[: max(0, last - keep)], *steps[last:]]:
        _remove(other)


def prune(run: Path, newest: Path, keep: int) -> None:
    """Remove old checkpoints that a run killed just after writing `newest` had still to remove."""
    steps = list_steps(run)
    if newest in steps:
        for older in steps[: max(0, steps.index(newest) + 1 - keep)]:
            _remove(older)


def _remove(folder: Path) -> None:
    """Rename a checkpoint, then delete it, so that its name never stands for a partial one."""
    leaving = temporary_name(folder)
    folder.rename(leaving)
    shutil.rmtree(leaving)


def load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Return step, weights and optimizer state of a checkpoint; of a sharded one, `sharded.read` reads the latter.

    Raises:
        MissingError: a file is not there or damaged.
    """
    try:
        written = read_json(folder / "trainer.json")
        step = written["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step}")
        if "sharded" in written and sharded.file_sizes(folder) != written["sharded"]:
            raise ValueError("its sharded files are incomplete")
        weights = load_file(folder / "model.safetensors")
        if "sharded" in written:
            sharded.read_shapes(folder)  # sees that the index is torch's
        check_archive(folder / "state.pt")
        state = torch.load(folder / "state.pt", weights_only=True)
        dict(state["optimizer"])
    except (*UNREADABLE, MissingError) as error:
        raise MissingError(
            f"checkpoint {folder} is damaged ({type(error).__name__}); resume from another one"
        ) from error
    return step, weights, state


def retire(run: Path) -> Path | None:
    """Move all files of an earlier run to `retired/N`; return that folder, None if there was no run.

    A run that is started anew and killed before its first checkpoint must not be resumed from the one before it.
    """
    if not list_steps(run):
        return None
    retired = run / RETIRED
    with output_errors(retired):
        retired.mkdir(exist_ok=True)
        place = retired / str(1 + max((int(one.name) for one in retired.iterdir() if one.name.isdecimal()), default=0))
        place.mkdir()
        # The checkpoints last: until they have moved, the run can still be resumed.
        names = [path.name for path in run.iterdir() if path.name not in (RETIRED, FOLDER) and path.name[0] != "."]
        for name in (*(name for name in names if name not in CACHES), FOLDER):
            (run / name).rename(place / name)
    return place


def is_sharded(folder: Path) -> bool:
    """Return True if all processes wrote the tensors of a checkpoint together."""
    return (folder / sharded.FOLDER).is_dir()


def list_steps(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(run.glob(STEPS))


def find(run: Path, resume: str) -> Path | None:
    """Return the checkpoint for `resume`: auto (newest, if any), true (newest), none, or a folder.

    Raises:
        UsageError, MissingError: there is no such checkpoint.
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

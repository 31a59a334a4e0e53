"""The result of a run that is not at its end: the running-mean weights of a checkpoint, as `final` would hold them."""

from __future__ import annotations

from pathlib import Path

from kgcli.errors import MissingError, UsageError
from kgcli.recipe import load_recipe
from kgcli.training import checkpoint
from kgcli.training.run import Run


def find_checkpoint(folder: Path) -> Path:
    """Return a checkpoint: the folder itself, or the newest of a run. Raises: MissingError."""
    if (folder / "trainer.json").is_file():
        return folder
    steps = checkpoint.list_steps(folder)
    if not steps:
        raise MissingError(f"{folder} is no checkpoint and no run folder that holds one")
    return steps[-1]


def export_checkpoint(folder: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write what a run would export if it ended at a checkpoint; the checkpoint and its run stay as they are.

    Args:
        folder: a checkpoint, or a run folder for its newest one; paths in its recipe are relative to the working folder

    Raises: MissingError, UsageError, IncompatibleError.

    Example:
        >>> export_checkpoint(Path("runs/nano128/unet"), Path("unet_now"))  # doctest: +SKIP
        PosixPath('unet_now')
    """
    found = find_checkpoint(folder)
    if out.exists() and not overwrite and (out.is_file() or any(out.iterdir())):
        raise UsageError(f"{out} already exists; give --overwrite or another --out")
    run = Run(load_recipe(str(found / "recipe.yaml")))
    run.trainer.resume(found)
    run.say(f"step {run.trainer.step} of {run.recipe.steps}")
    return run.export(out)

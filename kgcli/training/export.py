"""The result of a run that is not at its end: the running-mean weights of a checkpoint, as `final` would hold them."""

from __future__ import annotations

from pathlib import Path

from kgcli.errors import MissingError, UsageError
from kgcli.recipe import load_recipe
from kgcli.training.chains import STEPS
from kgcli.weights.folder import check_target

CHECKPOINT, RECIPE = "trainer.json", "recipe.yaml"  # files of a checkpoint
FILES = (".json", ".safetensors")  # suffixes of an export's own files
# Folders of the exports of all stages.
PARTS = frozenset(
    (
        *("adapter", "clip", "decoder", "eval_clip", "eval_dino", "judges"),
        *("scheduler", "sentencepiece", "text_encoder", "tokenizer", "unet", "vae"),
    )
)


def find_checkpoint(folder: Path) -> Path:
    """Return a checkpoint: the folder itself, or the newest of a run. Raises: MissingError."""
    if (folder / CHECKPOINT).is_file():
        return folder
    steps = sorted(folder.glob(STEPS))
    if not steps:
        raise MissingError(f"{folder} is no checkpoint and no run folder that holds one")
    return steps[-1]


def check_export(folder: Path, out: Path, *, overwrite: bool) -> Path:
    """Return the checkpoint of a folder, after checking its recipe and that no file is lost at `out`.

    Raises: MissingError, ConfigError, UsageError.
    """
    found = find_checkpoint(folder)
    run = run_of(found)
    if out.expanduser().resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{out} lies in the run {run}, which stays as it is; give a folder outside it")
    check_target(out, [run], overwrite=overwrite, what="an earlier export", is_one=is_export)
    load_recipe(str(found / RECIPE))
    return found


def run_of(found: Path) -> Path:
    """Return the run folder of a checkpoint; a checkpoint that was moved out of its run stands for itself."""
    absolute = found.absolute()
    return absolute.parent.parent if absolute.match(STEPS) else absolute


def is_export(folder: Path) -> bool:
    """Tell whether a folder is the result of a run, and holds nothing else."""
    entries = list(folder.iterdir())
    fits = all(one.name in PARTS if one.is_dir() else one.suffix in FILES for one in entries)
    return fits and any(one.suffix in FILES for one in (*entries, *folder.glob("*/*")))


def export_checkpoint(folder: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write what a run would export if it ended at a checkpoint; the checkpoint and its run stay as they are.

    As the run itself did, it reads the data of the recipe and the weights that the run started from.

    Args:
        folder: a checkpoint, or a run folder for its newest one; paths in its recipe are relative to the working folder
        out: folder to write, outside the run; `overwrite` replaces an earlier export there and nothing else

    Raises: MissingError, ConfigError, UsageError, IncompatibleError.

    Example:
        >>> export_checkpoint(Path("runs/nano/unet"), Path("unet_now"))  # doctest: +SKIP
        PosixPath('unet_now')
    """
    found = check_export(folder, out, overwrite=overwrite)
    from kgcli.training.run import Run  # torch loads here, after all checks

    recipe = load_recipe(str(found / RECIPE)).model_copy(update={"trackers": ()})  # nothing is logged
    run = Run(recipe)
    run.trainer.resume(found)
    run.say(f"step {run.trainer.step} of {run.recipe.steps}")
    return run.export(out.expanduser())

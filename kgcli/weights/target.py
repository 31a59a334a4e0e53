"""Wishes about a conversion that are checked before it: the precision, and a folder in which nothing is lost."""

from pathlib import Path

from kgcli.config import CONFIG_NAME
from kgcli.errors import UsageError

DTYPE_NAMES = ("float32", "float16", "bfloat16", "fp32", "fp16", "bf16")


def check_target(out: Path, inputs: list[Path], *, overwrite: bool) -> Path:
    """Return the whole path of a model folder that may be written.

    Raises: UsageError where something is there that must not be lost.
    """
    out = out.expanduser().absolute()
    if out.is_file():
        raise UsageError(f"{out} is a file; a model is a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return out
    if not overwrite:
        raise UsageError(f"{out} is there already; give --overwrite or another name")
    if not (out / CONFIG_NAME).is_file():
        raise UsageError(f"{out} holds other things than a model, so --overwrite does not apply; give another name")
    if any(path.resolve().is_relative_to(out.resolve()) for path in inputs):
        raise UsageError(f"{out} holds the file it is made of; give another name")
    return out

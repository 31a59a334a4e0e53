"""Convert a trained model folder, or one file of weights, to fp16 for shipping.

Run: python -m kgcli.weights.ship runs/nano/instruct/final kgcli/nano/model

Of several sources, which are runs of one stage from the same start, the means of their weights are shipped:

    python -m kgcli.weights.ship runs/one/final runs/other/final kgcli/nano/model
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from kgcli.errors import KgError, MissingError, UsageError
from kgcli.weights.safetensors import check_weights, read_weights


def ship(source: Path, target: Path, *, others: Sequence[Path] = ()) -> int:
    """Copy `source` to `target` with every weight in fp16; returns the bytes written.

    Args:
        others: further sources of the same layout, whose weights count as much as those of `source`; all that is no
            weight is copied from `source`. Source: model soups (arXiv:2203.05482).

    Raises:
        UsageError: `target` lies in a source.
        MissingError: a source, or a file of weights in one, is not there or is damaged.
        IncompatibleError: the weights of the sources differ in names or shapes.
    """
    names = [file.relative_to(source) for file in _files(source)]  # "." for a single file
    if not names:
        raise MissingError(f"there are no weights in {source}: no *.safetensors")
    if any(target.resolve().is_relative_to(place.resolve()) for place in (source, *others)):
        raise UsageError(f"{target} is or lies in what is shipped; give another target")
    for name in names:  # before anything is written
        _mean(source, others, name)
    partial = target.with_name("." + target.name + ".partial")
    _remove(partial)
    try:
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial)
        else:
            shutil.copytree(source, partial)
        for name in names:
            halved = {key: _half(tensor) for key, tensor in _mean(source, others, name).items()}
            save_file(halved, partial / name, metadata={"format": "pt"})
            (partial / name).chmod(0o644)  # safetensors writes 600, which nobody but the installing user could read
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        _remove(partial)
    return sum(file.stat().st_size for file in _files(target, "*"))


def _files(root: Path, pattern: str = "*.safetensors") -> list[Path]:
    """Return the files below a folder that match a pattern, or the file itself."""
    return [root] if root.is_file() else [path for path in root.rglob(pattern) if path.is_file()]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mean(source: Path, others: Sequence[Path], name: Path) -> dict[str, torch.Tensor]:
    """Return the means of one file's weights over all sources, in fp32; weights that are no floats stay.

    Raises: MissingError, IncompatibleError.
    """
    weights = read_weights(source / name)
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    total = {key: tensor.float() for key, tensor in weights.items() if tensor.is_floating_point()}
    for other in others:
        if not (other / name).is_file():
            raise MissingError(f"there is no file {other / name} beside that of {source}")
        found = read_weights(other / name)
        check_weights(shapes, {key: tensor.shape for key, tensor in found.items()}, source=str(other / name))
        total = {key: tensor + found[key].float() for key, tensor in total.items()}
    return weights | {key: tensor / (1 + len(others)) for key, tensor in total.items()}


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _main(args: list[str]) -> None:
    if len(args) < 2:
        sys.exit("usage: python -m kgcli.weights.ship SOURCE [OTHER SOURCE ...] TARGET")
    source, *others, target = map(Path, args)
    try:
        print(f"{ship(source, target, others=others) / 1e6:.1f} MB")
    except KgError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _main(sys.argv[1:])

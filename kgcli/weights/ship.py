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
from safetensors.torch import load_file, save_file

from kgcli.weights.safetensors import check_weights


def ship(source: Path, target: Path, *, others: Sequence[Path] = ()) -> int:
    """Copy `source` to `target` with every weight in fp16; returns the bytes written.

    Args:
        others: further sources of the same layout, whose weights count as much as those of `source`; all that is no
            weight is copied from `source`. Source: model soups (arXiv:2203.05482).

    Raises:
        IncompatibleError: the weights of the sources differ in names or shapes.
    """
    partial = target.with_name("." + target.name + ".partial")
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
    for file in _files(partial):
        inner = file.relative_to(partial)  # "." for a single file
        weights = _mean(load_file(file), [other / inner for other in others])
        save_file({name: _half(tensor) for name, tensor in weights.items()}, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes 600, which nobody but the installing user could read
    if target.is_dir():
        shutil.rmtree(target)
    partial.replace(target)
    return sum(file.stat().st_size for file in _files(target, "*"))


def _files(root: Path, pattern: str = "*.safetensors") -> list[Path]:
    """Return the files below a folder that match a pattern, or the file itself."""
    return [root] if root.is_file() else [path for path in root.rglob(pattern) if path.is_file()]


def _mean(weights: dict[str, torch.Tensor], others: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the means of some weights and those of other files, in fp32; weights that are no floats stay."""
    total = {name: tensor.float() for name, tensor in weights.items() if tensor.is_floating_point()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for file in others:
        found = load_file(file)
        check_weights(shapes, {name: tensor.shape for name, tensor in found.items()}, source=str(file))
        total = {name: tensor + found[name].float() for name, tensor in total.items()}
    return weights | {name: tensor / (1 + len(others)) for name, tensor in total.items()}


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    first, *more, to = map(Path, sys.argv[1:])
    print(f"{ship(first, to, others=more) / 1e6:.1f} MB")

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

from kgcli.errors import KgError, MissingError, UsageError
from kgcli.files import make_folder, whole_folder
from kgcli.weights.safetensors import check_weights, read_weights, write_weights

WEIGHTS = "*.safetensors"


def ship(source: Path, target: Path, *, others: Sequence[Path] = ()) -> int:
    """Copy `source` to `target` with every weight in fp16; returns the bytes written.

    Args:
        others: further sources of the same layout, whose weights count as much as those of `source`; all that is no
            weight is copied from `source`. Source: model soups (arXiv:2203.05482).

    Raises:
        UsageError: `target` lies in a source.
        MissingError: a source, or a file of weights in one, is not there or is damaged.
        IncompatibleError: the weights of the sources differ in names or shapes.
        OutputError: `target` cannot be written.
    """
    names = [file.relative_to(source) for file in _files(source)]
    if not names:
        raise MissingError(f"there are no weights in {source}: no {WEIGHTS}")
    if any(target.resolve().is_relative_to(place.resolve()) for place in (source, *others)):
        raise UsageError(f"{target} is or lies in what is shipped; give another target")
    if source.is_file():
        make_folder(target.parent)
        write_weights(target, _mean(source, others, Path()), dtype=torch.float16)
    else:
        with whole_folder(target, overwrite=True) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
            for name in names:
                write_weights(partial / name, _mean(source, others, name), dtype=torch.float16)
    return sum(file.stat().st_size for file in _files(target, "*"))


def _files(root: Path, pattern: str = WEIGHTS) -> list[Path]:
    """Return the files below a folder that match a pattern, or the file itself."""
    return [root] if root.is_file() else [path for path in root.rglob(pattern) if path.is_file()]


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

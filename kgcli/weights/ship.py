"""Convert a trained model folder, or one file of weights, to fp16 for shipping.

Run: python -m kgcli.weights.ship runs/nano/instruct/final kgcli/nano/model
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def ship(source: Path, target: Path) -> int:
    """Copy `source` to `target` with every weight in fp16; returns the bytes written."""
    partial = target.with_name("." + target.name + ".partial")
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
    for file in _files(partial):
        weights = {name: _half(tensor) for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes 600, which nobody but the installing user could read
    if target.is_dir():
        shutil.rmtree(target)
    partial.replace(target)
    return sum(file.stat().st_size for file in _files(target, "*"))


def _files(root: Path, pattern: str = "*.safetensors") -> list[Path]:
    """Return the files below a folder that match a pattern, or the file itself."""
    return [root] if root.is_file() else [path for path in root.rglob(pattern) if path.is_file()]


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]), Path(sys.argv[2])) / 1e6:.1f} MB")

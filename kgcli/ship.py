"""Make a trained model folder small enough to ship: fp16 everywhere, nothing that only training needs.

Run: python -m kgcli.ship runs/nano/instruct/final kgcli/nano/model
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
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    for file in partial.rglob("*.safetensors"):
        weights = {name: _half(tensor) for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes 600, which nobody but the installing user could read
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]), Path(sys.argv[2])) / 1e6:.1f} MB")

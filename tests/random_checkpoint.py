"""Published-format files of any size made in seconds and little memory, and what a conversion of one costs."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.weights.published.checkpoint import INSTRUCT, expected_weights
from kgcli.weights.published.fairseq import checkpoint_content
from kgcli.weights.published.names import published_buffers, to_published

BLOCK = 2**20  # random numbers that are drawn; drawing more takes longer than writing them

# ru_maxrss of a child counts its parent's pages too, from before the child became a program of its own; VmHWM does not.
_PEAK = """
import re
from pathlib import Path
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
_RUN = """
import sys
from kgcli.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    if left.code:
        raise
"""
_LOAD = """
import sys, torch
from kgcli.weights.load import load_kosmosg
model = load_kosmosg(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def config_of(scale: int = 1, num_layers: int = 24) -> ModelConfig:
    """The published sizes (as they are by default) with widths divided and layers cut; heads are 64 wide throughout."""
    full = ModelConfig()
    if (scale, num_layers) == (1, full.mllm.num_layers):
        return full
    values = full.model_dump()
    for part, heads in (("vision", 16), ("mllm", 32), ("aligner", 12)):
        values[part] |= {"width": values[part]["width"] // scale, "num_heads": heads // scale}
        values[part]["num_layers"] = min(num_layers, values[part]["num_layers"])
    for part in ("mllm", "aligner"):
        values[part]["ffn_width"] //= scale
    values["resampler"]["num_heads"] //= scale
    return ModelConfig.model_validate(values)


def write_random(
    path: Path,
    cfg: ModelConfig,
    stage: str = INSTRUCT,
    *,
    legacy: bool = False,
    dtype: torch.dtype = torch.float16,
    frozen: Mapping[str, torch.Size] | None = None,
) -> int:
    """Write a file of a stage; returns its size in bytes. `frozen` are further weights, as of the decoder.

    All weights are views of one repeated random block, each with a storage of its own, so that each is written whole.
    """
    shapes = {name: tensor.shape for name, tensor in to_published(expected_weights(cfg, stage)).items()}
    shapes |= frozen or {}
    draws = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(dtype)
    block = draws.repeat(math.ceil(max(map(math.prod, shapes.values())) / BLOCK))
    buffer = memoryview(block.numpy())
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        state[name] = torch.frombuffer(buffer, dtype=dtype, count=shape.numel()).view(shape)
    state |= published_buffers(cfg.mllm.width // cfg.mllm.num_heads, dtype)
    torch.save(checkpoint_content(state, cfg), path, _use_new_zipfile_serialization=not legacy)
    return path.stat().st_size


def run_measured(*args: object) -> tuple[int, float, str]:
    """Run `kg` in a process of its own: peak resident memory in bytes, seconds, and what it printed."""
    return _measure(_RUN, *args)


def load_measured(folder: Path, dtype: str = "float16") -> tuple[int, float, str]:
    """Load a model folder in a process of its own: peak memory, seconds, and the number of its parameters."""
    return _measure(_LOAD, folder, dtype)


def _measure(code: str, *args: object) -> tuple[int, float, str]:
    start = time.perf_counter()
    command = [sys.executable, "-c", code + _PEAK, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    printed, _, peak = done.stdout.rpartition("peak ")
    return int(peak) * 1024, seconds, printed

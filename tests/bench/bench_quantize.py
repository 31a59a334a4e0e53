"""What a quantised MLLM saves and costs: bytes, seconds, and how far the conditioning is from full precision.

A reader of the published sizes with the weights its initialisation gives reads one prompt of two pictures, in a process
of its own for each row. Prints a table, then one JSON line:

    python tests/bench/bench_quantize.py [--scale 4 --layers 6] [--model FOLDER] | tail -1

Full size (the default) needs 4 GB of disk and, for its row in float32, 9 GB of memory. `--model` measures a folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_checkpoint import config_of  # noqa: E402 (found by the line above)

from kgcli.config import ModelConfig  # noqa: E402
from kgcli.model.kosmosg import KosmosG  # noqa: E402
from kgcli.weights.safetensors import DTYPES  # noqa: E402

NUM_WORDS = 20
ROWS = (
    ("float32", "none"),
    ("bfloat16", "none"),
    ("float32", "8bit"),
    ("bfloat16", "8bit"),
    ("float32", "4bit"),
    ("bfloat16", "4bit"),
)


def main() -> None:
    """Write a model, read a prompt with it in each way, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this (1, 2 or 4)")
    parser.add_argument("--layers", type=int, default=24, help="layers of each stack, at most")
    parser.add_argument("--dir", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--model", type=Path, help="a model folder instead of a random one")
    parser.add_argument("--rows", default=",".join(map("/".join, ROWS)), help="precision/quantize, ...")
    parser.add_argument("--one", nargs=4, metavar=("MODEL", "DTYPE", "QUANTIZE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return read_once(*options.one)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = options.model or write_random_reader(Path(name) / "model", config_of(options.scale, options.layers))
        rows = {row: measure(folder, *row.split("/"), Path(name)) for row in options.rows.split(",")}
    setup = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    print(json.dumps({"theme": "quantize", "rows": rows} | setup))


def write_random_reader(folder: Path, cfg: ModelConfig) -> Path:
    """A model folder of these sizes in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    KosmosG(cfg).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def measure(folder: Path, dtype: str, quantize: str, work: Path) -> dict[str, float]:
    """One way of loading in a process of its own, against the first."""
    out = work / f"{dtype}-{quantize}.safetensors"
    command = [sys.executable, __file__, "--one", str(folder), dtype, quantize, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    reference = load_file(next(path for path in (work / "float32-none.safetensors", out) if path.is_file()))["embeds"]
    embeds = load_file(out)["embeds"]
    row["relative_l2"] = round(float((embeds - reference).norm() / reference.norm()), 5)
    row["cosine"] = round(float(torch.cosine_similarity(embeds, reference, dim=-1).mean()), 6)
    print(f"{dtype}/{quantize}: {row}", flush=True)
    return row


def read_once(folder: str, dtype: str, quantize: str, out: str) -> None:
    """Load, read a prompt of two pictures, say what it took."""
    start = time.perf_counter()
    model = KosmosG.from_pretrained(folder, dtype=DTYPES[dtype], quantize=quantize)
    loaded = time.perf_counter()
    prompt = make_prompt(model.cfg, DTYPES[dtype])
    with torch.no_grad():
        embeds = model.encode(*prompt)
        first = time.perf_counter()
        model.encode(*prompt)
    values = {
        "load_seconds": round(loaded - start, 1),
        "read_seconds": round(time.perf_counter() - first, 1),
        "mllm_linear_bytes": sum(map(bytes_of, filter(is_linear, model.mllm.modules()))),
        "reader_bytes": sum(bytes_of(module) for module in model.modules()),
        "peak_bytes": 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]),
    }
    save_file({"embeds": embeds.float().contiguous()}, out)
    print(json.dumps(values))


def is_linear(module: nn.Module) -> bool:
    """Whether it is what can be quantised."""
    return isinstance(module, nn.Linear)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's own weights, with the scales of quantised ones."""
    held = list(module._parameters.values()) + list(module._buffers.values())
    if hasattr(module, "state"):
        held.append(module.state.SCB)
    if hasattr(getattr(module, "weight", None), "quant_state"):
        held.append(module.weight.quant_state.absmax)
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def make_prompt(cfg: ModelConfig, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Words, a picture, words, a picture; all drawn from one seed."""
    draws = torch.Generator().manual_seed(0)
    slots = cfg.resampler.num_queries
    words = torch.randint(10, min(170, cfg.mllm.vocab_size - 10), (2, NUM_WORDS), generator=draws).tolist()
    tokens, image_mask = [cfg.special_ids.bos], [False]
    for part in words:
        tokens += [*part, cfg.special_ids.boi, *[cfg.special_ids.boi] * slots, cfg.special_ids.eoi]
        image_mask += [*[False] * (len(part) + 1), *[True] * slots, False]
    side = cfg.vision.image_size
    pictures = torch.randn(2, 3, side, side, generator=draws).to(dtype)
    tokens_BT = torch.tensor([tokens])
    return tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), torch.tensor([image_mask]), pictures


if __name__ == "__main__":
    main()

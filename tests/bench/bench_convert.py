"""Memory and time of `kg convert` on a random file: does a checkpoint of any size convert in less memory than it takes?

Prints a table, then one JSON line: python tests/bench/bench_convert.py [--scale 4 --layers 6] | tail -1
Full size (the default) needs three times 3.8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_checkpoint import config_of, load_measured, run_measured, write_random  # noqa: E402 (found by the line above)


def main() -> None:
    """Write a file, convert it there and back, show what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=1, help="divide all widths by this (1, 2 or 4)")
    parser.add_argument("--layers", type=int, default=24, help="layers of each stack, at most")
    parser.add_argument("--shard-size", type=float, default=1.0, help="gigabytes")
    parser.add_argument("--dir", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        print(json.dumps(measure(Path(name), options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """One file, there and back."""
    size = write_random(folder / "published.pt", config_of(options.scale, options.layers))
    idle, _, _ = run_measured("models", "show")  # torch alone
    rows: dict[str, dict[str, float]] = {}
    for row, args in {
        "to folder": ["published.pt", "model", "--shard-size", options.shard_size],
        "to folder, float32": ["published.pt", "model", "--shard-size", options.shard_size, "--dtype", "float32"],
        "to published": ["--to", "published", "model", "back.pt"],
    }.items():
        paths = [folder / arg if str(arg) in ("published.pt", "model", "back.pt") else arg for arg in args]
        add(rows, row, size, *run_measured("convert", *paths, "--overwrite")[:2])
        if row == "to folder":
            add(rows, "load as in the file", size, *load_measured(folder / "model")[:2])
            add(rows, "load, bfloat16", size, *load_measured(folder / "model", "bfloat16")[:2])
    print(f"file {size / 1e9:.2f} GB; a process that converts nothing {idle / 1e9:.2f} GB")
    for row, values in rows.items():
        print(f"{row:20} peak {values['peak_bytes'] / 1e9:5.2f} GB = {values['ratio']} x file, {values['seconds']} s")
    setup = {"torch": torch.__version__, "machine": platform.machine(), "scale": options.scale}
    return {"theme": "convert", "file_bytes": size, "idle_bytes": idle, "rows": rows} | setup


def add(rows: dict[str, dict[str, float]], name: str, size: int, peak: int, seconds: float) -> None:
    """Put what one process took among the rows."""
    rows[name] = {"peak_bytes": peak, "ratio": round(peak / size, 3), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()

"""Feature extraction over processes against one: wall time, and whether the kept blocks are the same bytes.

Takes an Inception of the true architecture with random weights, and turns about, so that a busy machine slows both.
Run: python tests/bench/bench_scoring.py [--num 512 --workers 2 --rounds 2]; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_inception import write_random_inception  # noqa: E402 (found by the line above)

from kgcli.evaluation.extractors.cache import BLOCK, FeatureCache  # noqa: E402
from kgcli.evaluation.extractors.inception import (  # noqa: E402
    InceptionExtractor,
    TorchFidelityInception,
    tensor_256,
)
from kgcli.evaluation.extractors.processes import Processes, compute_exactly  # noqa: E402


def main() -> None:
    """Measure, and print a row per run and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=8 * BLOCK, help="images of 256 pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Encode the same images by one process and by several, in turns."""
    compute_exactly("cpu")
    weights = write_random_inception(folder)["inception"]
    files = write_images(folder / "images", options.num)
    kept: dict[int, dict[str, bytes]] = {}
    seconds: dict[int, list[float]] = {1: [], options.workers: []}
    for number in range(options.rounds):
        for workers in (1, options.workers) if number % 2 == 0 else (options.workers, 1):
            out = folder / f"{workers}-{number}"
            before, begin = used(), time.perf_counter()
            with Processes(workers, fewest_blocks=2) as processes:
                FeatureCache(out, processes=processes).images(
                    InceptionExtractor(TorchFidelityInception(weights), tensor_256), files
                )
            seconds[workers].append(time.perf_counter() - begin)
            kept[workers] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
            print(f"{workers} workers: {seconds[workers][-1]:.1f} s, {used() - before:.1f} s of processors")
    return {
        "machine": platform.machine(),
        "images": options.num,
        "seconds": seconds,
        "ratio": sum(seconds[1]) / sum(seconds[options.workers]),
        "same_bytes": kept[1] == kept[options.workers],
    }


def used() -> float:
    """Return the processor time of this process and of those that have ended below it, in seconds."""
    own, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime


def write_images(folder: Path, num: int) -> list[Path]:
    """Write images of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(num):
        Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")
    return sorted(folder.iterdir())


if __name__ == "__main__":
    main()

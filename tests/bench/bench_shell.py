"""Seconds of a line of `kg shell` against the pipeline's own time for the same image: what does the shell add?

The line is parsed, its image opened and hashed, the prompt encoded, the PNG written with its metadata and flushed to
the disk. The pipeline encodes the same prompt and samples. They take turns, so that a busy machine slows both. Prints
the medians, then one JSON line:

    python tests/bench/bench_shell.py [--model FOLDER] [--steps 25] [--repeats 9] | tail -1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from kgcli import engine
from kgcli.cli.live.shell import Session
from kgcli.cli.options import GenerateFlags
from kgcli.cli.plan import open_session
from kgcli.data.images import open_image
from kgcli.inference.denoise import seeded
from kgcli.runtime import versions
from kgcli.speed.clock import ratio, take_turns
from kgcli.weights.shipped import find_image

TARGET = 1.1  # of the pipeline's own time


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    flags = GenerateFlags(model=options.model, quiet=True, overwrite=True)
    plan = open_session(flags)
    session = Session(plan, flags, engine.load(plan.model, device="cpu"))
    pipeline, image = session.model.pipeline, Path(find_image("nano/cat.png"))
    with tempfile.TemporaryDirectory() as folder:
        line = f"a <image:{image}> in the snow --steps {options.steps} -s 1 -o {folder}/a.png"

        def shell() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                session.answer(line)

        def bare() -> object:
            return pipeline(
                "a <image> in the snow",
                open_image(image),
                generator=seeded([1])[0],
                num_inference_steps=options.steps,
            )

        taken = take_turns({"shell": shell, "pipeline": bare}, options.repeats, "cpu")
        made, same = open_image(f"{folder}/a.png"), bare().images[0]
        assert made.tobytes() == same.tobytes(), "the two give the same image"
    for name, seconds in taken.items():
        print(f"{name:10} {statistics.median(times.wall for times in seconds):.4f} s")
    result = {
        "theme": "shell",
        "steps": options.steps,
        "repeats": options.repeats,
        "ratio": round(ratio(taken["shell"], taken["pipeline"]), 4),
        "target": TARGET,
        "versions": versions(("torch", "diffusers")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

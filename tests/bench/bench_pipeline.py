"""What a picture costs here against diffusers' own StableDiffusionPipeline: same embeddings, sampler and steps.

Is there any price for going through KosmosGPipeline? The two take turns, so that a busy machine slows both; the reader
of prompts is timed apart. Prints a table, then one JSON line:

    python tests/bench/bench_pipeline.py [--model FOLDER] [--device cuda] [--steps 25] [--repeats 9] | tail -1
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from kgcli import KosmosGPipeline
from kgcli.config import SamplingConfig
from kgcli.inference.denoise import seeded
from kgcli.weights.safetensors import DTYPES

SAMPLER = "ddim"
PROMPT = "a <image> in the snow"
TARGET = 1.02  # of diffusers' own time


def seconds_of(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall clock and processor seconds of one call, the device's work awaited."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each call, round by round in alternating order, after one untimed round."""
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for round_number in range(repeats):
        names = list(calls) if round_number % 2 else list(calls)[::-1]
        for name in names:
            taken[name].append(seconds_of(calls[name], device))
    return taken


def diffusers_pipeline(kosmos: KosmosGPipeline) -> Any:
    """diffusers' own pipeline, made without any of our code, on the same weights."""
    pipeline = StableDiffusionPipeline(
        **{**kosmos.components, "scheduler": kosmos.make_scheduler(SAMPLER)}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    kosmos = KosmosGPipeline.from_pretrained(options.model, torch_dtype=DTYPES[options.dtype], device=options.device)
    theirs, size = diffusers_pipeline(kosmos), kosmos.model.cfg.generation
    picture = Image.new("RGB", (224, 224), "red")
    embeds, negative = kosmos.encode_prompt(PROMPT, picture)
    settings = {"num_inference_steps": options.steps, "guidance_scale": 3.0, "width": size.width, "height": size.height}

    def draw_ours() -> object:
        sampling = SamplingConfig(scheduler=SAMPLER, guidance_rescale=0.0, **settings)
        return kosmos.sample(embeds, negative, generators=seeded([1]), sampling=sampling)

    def draw_theirs() -> object:
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        return theirs(**given, generator=seeded([1])[0], **settings).images

    def encode() -> object:
        kosmos.encoder.forget()
        return kosmos.encode_prompt(PROMPT, picture)

    assert draw_ours()[0].tobytes() == draw_theirs()[0].tobytes(), "the two draw the same picture"
    taken = take_turns({"ours": draw_ours, "diffusers": draw_theirs}, options.repeats, options.device)
    taken |= take_turns({"encode": encode}, options.repeats, options.device)
    report(taken, options)


def report(taken: dict[str, list[tuple[float, ...]]], options: argparse.Namespace) -> None:
    """A table of seconds, and the ratio of each round's two pictures."""
    print(f"{'':10} {'median':>8} {'min':>8} {'max':>8}  wall clock seconds; median of processor seconds")
    for name, rows in taken.items():
        wall, cpu = zip(*rows, strict=True)
        print(
            f"{name:10} {statistics.median(wall):8.4f} {min(wall):8.4f} {max(wall):8.4f}  {statistics.median(cpu):8.4f}"
        )
    ratios = {
        clock: [ours[i] / theirs[i] for ours, theirs in zip(taken["ours"], taken["diffusers"], strict=True)]
        for i, clock in enumerate(("wall", "cpu"))
    }
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    line = {
        "theme": "pipeline",
        "device": gpu or platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "dtype": options.dtype,
        "steps": options.steps,
        "repeats": options.repeats,
        "seconds_ours": statistics.median(wall for wall, _ in taken["ours"]),
        "seconds_diffusers": statistics.median(wall for wall, _ in taken["diffusers"]),
        "seconds_encode": statistics.median(wall for wall, _ in taken["encode"]),
        "ratio_wall": statistics.median(ratios["wall"]),
        "ratio_cpu": statistics.median(ratios["cpu"]),
        "target": TARGET,
    }
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}))


if __name__ == "__main__":
    main()

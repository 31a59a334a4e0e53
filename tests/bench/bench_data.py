"""Does training wait for its data? Shards against base64-PNG lines, buckets and packing, cached moments.

All ratios come from one run, the two sides of each taking turns, and are of the least processor time of all turns, to
which other work on the machine adds least. Wall time stands beside it. Prints a table, then one JSON line:

    python tests/bench/bench_data.py [--images 48] [--repeats 5] [--photos FOLDER] | tail -1

The baseline is the published loader's: a line of base64 PNG, resized and normalised in float64. Both sides take one
sample after the other and keep nothing but the batch. The images are 512 px, made up, and stored as JPEG of quality 92;
with --photos, those of a folder instead, cropped and resized to 512 px. How much faster a JPEG is decoded than a PNG
depends on both files' sizes, which are printed. Cached moments are measured in the proportions of the published model
(bench_moments.py), and at nano size beside it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_moments import measure
from PIL import Image

from kgcli.data.batch import Collator
from kgcli.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    SUFFIXES,
    decode_image,
    open_image,
    to_square,
    to_vision_square,
)
from kgcli.data.loader import Batches
from kgcli.data.shards.records import Pair
from kgcli.data.shards.write import Row, ShardWriter, encode_image
from kgcli.data.sources import open_source
from kgcli.model.packing import Packing
from kgcli.recipe import DataConfig, load_recipe
from kgcli.training.run import Run

SIZE, VISION_SIZE = 512, 224  # pixels, of the published model
LEAST_SIDE = 400  # pixels of a photo: a smaller one would be blurred at 512
TARGETS = {"decode": 7.0, "whole sample": 4.0, "cached moments": 1.3}  # at least
# Positions per token, at most. Samples of 32 steps are sorted; of steps of equal size no other cut pads less.
MOST_PADDED = {"as it is": 1.10, "packed": 1.005}


def smooth_image(number: int) -> Image.Image:
    """Return an image that compresses about as photographs do."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    fine = rng.normal(0, 2, (SIZE, SIZE, 3))
    pixels = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), float) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def published_pixels(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return normalised pixels as the published code computes them."""
    values = np.asarray(image, dtype=np.float64) / 255.0
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1).astype(np.float32))


def compare(calls: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the least seconds of calls that take turns: of the processor, and of the clock."""
    busy: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            starts = time.process_time(), time.perf_counter()
            call()
            if number:  # the first warms up
                busy[name].append(time.process_time() - starts[0])
                wall[name].append(time.perf_counter() - starts[1])
    least_busy, least_wall = ({name: min(one) for name, one in of.items()} for of in (busy, wall))
    return least_busy, least_wall


def read_photos(folder: Path, num: int) -> list[Image.Image]:
    """Return `num` squares of the photos of a folder that are not much smaller, in turn."""
    photos = [open_image(path) for path in sorted(folder.rglob("*.*")) if path.suffix.lower() in SUFFIXES]
    squares = [to_square(photo, SIZE) for photo in photos if min(photo.size) >= LEAST_SIDE]
    if not squares:
        raise SystemExit(f"{folder} holds no photo of {LEAST_SIDE} pixels or more a side")
    return [squares[number % len(squares)] for number in range(num)]


def reading(folder: Path, images: list[Image.Image], repeats: int) -> dict[str, float]:
    """Return how many times as fast shards are decoded, and made samples of, as lines of base64 PNG."""
    num = len(images)
    pngs, jpegs = [encode_image(one) for one in images], [encode_image(one, "jpg") for one in images]
    print(
        f"{num} images: {sum(map(len, pngs)) / num / 1e3:.0f} KB as PNG, {sum(map(len, jpegs)) / num / 1e3:.0f} as JPEG"
    )
    lines = [f"{number}\ta caption\t{base64.b64encode(png).decode()}" for number, png in enumerate(pngs)]
    with ShardWriter(folder / "jpeg", "bench") as writer:
        for number, jpeg in enumerate(jpegs):
            writer.add(Row(f"{number:06d}", Pair(image="jpg", caption="a caption"), {"jpg": jpeg}))
    path = str(folder / "jpeg" / "bench-00000.tar")
    data = DataConfig.model_validate({"sources": [{"kind": "shards", "path": path}], "batch_size": num})
    source = open_source(data, SIZE, "match")
    batches = Batches(source, Collator(frozenset({"images", "targets"}), SIZE, VISION_SIZE, uint8=True), batch_size=num)

    def decoded(line: str) -> Image.Image:
        return decode_image(base64.b64decode(line.split("\t")[2]))

    def whole(line: str) -> tuple[np.ndarray, np.ndarray]:
        image = decoded(line)
        shown = published_pixels(to_vision_square(image, VISION_SIZE), CLIP_MEAN, CLIP_STD)
        return shown, published_pixels(to_square(image, SIZE), HALF, HALF)

    found, wall = compare(
        {
            "lines, decoded": lambda: [decoded(line).size for line in lines],
            "shards, decoded": lambda: [source.sample(number).caption for number in range(num)],
            "lines, whole": lambda: [np.stack(field) for field in zip(*map(whole, lines), strict=True)],
            "shards, whole": lambda: batches[0],
        },
        repeats,
    )
    for name, seconds in found.items():
        print(
            f"{name:20} {num / seconds:8.0f} samples per second of the processor, {num / wall[name]:6.0f} by the clock"
        )
    return {
        "decode": found["lines, decoded"] / found["shards, decoded"],
        "whole sample": found["lines, whole"] / found["shards, whole"],
    }


def padding() -> dict[str, float]:
    """Return positions per token of nano's align recipe: without and with buckets, as it is, and packed."""
    collator = Collator(frozenset({"tokens"}), 64, 64, num_slots=16, tokenizer=_nano_tokenizer())
    found = {}
    recipe = load_recipe("nano/align", ["init_from={model: nano}", "output_dir=unused"])
    for name, bucket in (("plain", 1), ("bucket 16", 16), ("as it is", recipe.data.bucket)):
        source = open_source(recipe.data, recipe.image_size, "generate")
        batches = Batches(source, collator, batch_size=recipe.data.batch_size, bucket=bucket)
        masks = [batches[step].token_mask for step in range(32)]
        found[name] = sum(mask.numel() for mask in masks) / sum(int(mask.sum()) for mask in masks)
        if name == "plain":
            packed = [Packing.plan(mask, 512) for mask in masks]
            found["packed"] = sum(one.source_RL.numel() for one in packed) / sum(int(one.sum()) for one in masks)
    return found


def moments(folder: Path, repeats: int) -> float:
    """Return how many times as much processor time an instruct step takes that encodes its targets, at nano size."""
    overrides = ["init_from={model: nano, decoder: nano/decoder}", f"output_dir={folder / 'run'}", "steps=1"]
    own = ["precision=fp32", "compile=false", "data.pool=32", "data.batch_size=32", "data.num_workers=0"]
    run = Run(load_recipe("nano/instruct", overrides + own))
    batch = next(run.batches(run.pool(), 0))
    collator = run.stage.collator(None)
    collator.needs = frozenset({"targets"})
    targets = collator(map(run.source.sample, batch.numbers), list(batch.numbers)).targets

    def step() -> None:
        sum(run.forward(batch).values()).backward()

    def encoded_step() -> None:
        with torch.no_grad():
            run.stage.diffusion.moments(targets)
        step()

    found, _ = compare({"cached": step, "encoded": encoded_step}, repeats)
    print(f"nano's instruct step: {found['cached']:.2f} s with cached moments, {found['encoded']:.2f} s without")
    return found["encoded"] / found["cached"]


def _nano_tokenizer():
    from kgcli.data.tokenizer import Tokenizer
    from kgcli.weights.shipped import DEFAULT_MODEL

    return Tokenizer.load(DEFAULT_MODEL / "tokenizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of images to take instead of made-up ones")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.photos:
        images = read_photos(args.photos, args.images)
    else:
        images = [smooth_image(number) for number in range(args.images)]
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        ratios = reading(Path(place), images, args.repeats)
        nano = moments(Path(place), args.repeats)
    published = measure(args.repeats)
    ratios["cached moments"] = published["processor_ratio"]
    padded = padding()
    for name, value in ratios.items():
        print(f"{name:16} {value:6.2f} x (at least {TARGETS[name]})")
    print(f"{'... at nano size':16} {nano:6.2f} x")
    for name, value in padded.items():
        print(
            f"{name:16} {value:6.3f} positions per token"
            + (f" (at most {MOST_PADDED[name]})" if name in MOST_PADDED else "")
        )
    met = all(ratios[name] >= least for name, least in TARGETS.items())
    met &= all(padded[name] <= most for name, most in MOST_PADDED.items())
    row = {"theme": "data", "machine": platform.processor(), "torch": torch.__version__, "met": met}
    print(
        json.dumps(row | {"ratios": ratios, "nano_moments": nano, "moments": published, "positions_per_token": padded})
    )


if __name__ == "__main__":
    main()

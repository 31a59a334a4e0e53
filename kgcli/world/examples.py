"""The example images that ship beside the nano recipes: instances no training stage has seen, in both worlds.

Rebuild them with `python -m kgcli.world.examples recipes/nano` and `... recipes/nano128 --size 128`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kgcli.world.spec import FLUENT_SIZE, Placed, Spec, Subject, render

SIZE = 256  # pixels, square, of the first world's
SIZES = {"nano": SIZE, "nano128": FLUENT_SIZE}  # folder of the recipes -> pixels of its images

# File name -> (noun, identity, scene). Identities are `new`: at or above FIRST_NEW_IDENTITY.
EXAMPLES = {
    "cat.png": ("cat", 1_000_557, "wood"),  # teal with orange stripes
    "dog.png": ("dog", 1_000_280, "garden"),  # blue with yellow spots
    "robot.png": ("robot", 1_000_072, "city"),  # pink with lime stripes
    "fox.png": ("fox", 1_000_383, "snow"),  # blue with pink stripes
    "car.png": ("car", 1_000_031, "beach"),  # pink with blue spots
    "teapot.png": ("teapot", 1_000_708, "brick"),  # orange with blue spots
    "owl.png": ("owl", 1_000_459, "forest"),  # red with yellow patches
}
SCENES_128 = {"cat.png": "forest", "teapot.png": "wood"}  # where an orange body would be lost on orange at 128 px


def example_spec(name: str, size: int = SIZE) -> Spec:
    """Return the spec of the example image of a file name, in the world of `size` pixels."""
    noun, identity, scene = EXAMPLES[name]
    if size == FLUENT_SIZE:
        scene = SCENES_128.get(name, scene)
    placed = Placed(Subject(noun, identity), x=0.5, y=0.53, side=0.84, tilt=2.0, flip=False)
    return Spec((placed,), scene, "photo", variant=identity)


def example_image(name: str, size: int = SIZE) -> Image.Image:
    """Return the example image of a file name, RGB, size x size pixels."""
    return render(example_spec(name, size), size).image


def write_examples(folder: Path, size: int = SIZE) -> list[Path]:
    """Write all example images into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in EXAMPLES]
    for path in paths:
        example_image(path.name, size).save(path, optimize=True)
    return paths


def main() -> None:
    """Write the images of one world."""
    parser = argparse.ArgumentParser(description="Write the example images of the nano world.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=SIZE, choices=sorted(set(SIZES.values())), help="pixels")
    args = parser.parse_args()
    print(*write_examples(args.folder, args.size), sep="\n")


if __name__ == "__main__":
    main()

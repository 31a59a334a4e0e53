"""The example images that ship beside the nano recipes: instances no training stage has seen.

Rebuild them with `python -m kgcli.world.examples recipes/nano`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kgcli.world.rendering import render
from kgcli.world.spec import Placed, Spec, Subject

# File name -> (noun, identity, scene). Identities are `new`: at or above FIRST_NEW_IDENTITY.
EXAMPLES = {
    "cat.png": ("cat", 1_000_531, "forest"),  # orange
    "dog.png": ("dog", 1_000_280, "garden"),  # blue with yellow spots
    "robot.png": ("robot", 1_000_072, "city"),  # pink with lime stripes
    "fox.png": ("fox", 1_000_383, "snow"),  # blue with pink stripes
    "car.png": ("car", 1_000_031, "beach"),  # pink with blue spots
    "teapot.png": ("teapot", 1_000_708, "wood"),  # orange with blue spots
    "owl.png": ("owl", 1_000_459, "forest"),  # red with yellow patches
}


def example_spec(name: str) -> Spec:
    """Return the spec of the example image of a file name."""
    noun, identity, scene = EXAMPLES[name]
    placed = Placed(Subject(noun, identity), x=0.5, y=0.53, side=0.84, tilt=2.0, flip=False)
    return Spec((placed,), scene, "photo", variant=identity)


def example_image(name: str) -> Image.Image:
    """Return the example image of a file name, RGB."""
    return render(example_spec(name)).image


def write_examples(folder: Path) -> list[Path]:
    """Write all example images into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in EXAMPLES]
    for path in paths:
        example_image(path.name).save(path, optimize=True)
    return paths


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description="Write the example images of the nano world.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(*write_examples(args.folder), sep="\n")


if __name__ == "__main__":
    main()

"""The two worlds, told apart by the size of their images, and the view in which classifiers and extractors see either.

A model belongs to the world of the images it was made for, and so do the classifiers and extractors that score it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.errors import IncompatibleError, MissingError
from kgcli.files import PACKAGE
from kgcli.world.spec import FLUENT_SIZE

FIRST_SIZE = 64  # pixels, square: images of the first world
VIEW_SIZE = 64  # pixels, square, that classifiers and extractors see in either world
WORLD = "world"  # key in the config.json of classifiers and extractors; absent in those of the first world that ship
RECIPES = {FIRST_SIZE: "nano", FLUENT_SIZE: "nano128"}  # folder of a world's recipes


def world_of(size: int | None) -> int:
    """Return the size of the world of a model that makes images of `size` x `size` pixels.

    Example:
        >>> world_of(128), world_of(64), world_of(512)
        (128, 64, 64)
    """
    return FLUENT_SIZE if size == FLUENT_SIZE else FIRST_SIZE


def view(image: Image.Image) -> Image.Image:
    """Return an image as classifiers and extractors see it: RGB, VIEW_SIZE x VIEW_SIZE pixels, by PIL's bicubic."""
    return image.convert("RGB").resize((VIEW_SIZE, VIEW_SIZE), Image.Resampling.BICUBIC)


def shipped_for(part: str, world: int) -> Path:
    """Return the folder in which a world's `judges` or `evaluators` ship."""
    return PACKAGE / "nano" / (part if world == FIRST_SIZE else f"{part}{world}")


def how_to_train(stage: str, world: int) -> str:
    """Return the command that trains a stage of evaluation on a world."""
    return f"`kg base {stage} {RECIPES[world]}/{stage}`"


def check_world(config: Any, world: int, folder: Path, stage: str) -> None:
    """Check that the network of a config.json was trained on the images of a world.

    Raises: IncompatibleError; MissingError for a damaged configuration.
    """
    if not isinstance(config, dict):
        raise MissingError(f"the config.json in {folder} is damaged; {how_to_train(stage, world)} makes one")
    trained = config.get(WORLD, FIRST_SIZE)
    if trained != world:
        raise IncompatibleError(
            f"{folder} was trained on the world of {trained} px, the model belongs to that of {world} px; "
            f"{how_to_train(stage, world)} trains what fits"
        )

"""The view in which classifiers and extractors see images, and the check that they were trained on this world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.errors import IncompatibleError, MissingError
from kgcli.world.tables import SIZE

VIEW_SIZE = 64  # pixels, square, that classifiers and extractors see
WORLD = "world"  # key in their config.json: the size of the images that they were trained on, before `view`


def view(image: Image.Image) -> Image.Image:
    """Return an image as classifiers and extractors see it: RGB, VIEW_SIZE x VIEW_SIZE pixels, by PIL's bicubic."""
    return image.convert("RGB").resize((VIEW_SIZE, VIEW_SIZE), Image.Resampling.BICUBIC)


def how_to_train(stage: str) -> str:
    """Return the command that trains a stage of evaluation."""
    return f"`kg base {stage} nano/{stage}`"


def check_world(config: Any, folder: Path, stage: str) -> None:
    """Check that the network of a config.json was trained on this world: the first one's had no such key.

    Raises: IncompatibleError; MissingError for a damaged configuration.
    """
    if not isinstance(config, dict):
        raise MissingError(f"the config.json in {folder} is damaged; {how_to_train(stage)} makes one")
    if config.get(WORLD) != SIZE:
        raise IncompatibleError(
            f"{folder} was trained on another world than that of {SIZE} px; {how_to_train(stage)} trains what fits"
        )

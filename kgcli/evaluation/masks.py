"""Pictures without their backgrounds, for similarity that sees the subject alone. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.featurecache import Alteration
from kgcli.evaluation.runs import sha256

WHITE = (255, 255, 255)
Segmenter = Callable[[Image.Image], Image.Image]  # a picture to a mask of its size, light where the subject is


def masks_from_files(roots: dict[Path, Path]) -> Alteration:
    """Masks that lie in folders like those of the pictures: roots names, for a folder of pictures, that of its masks.

    A mask is a PNG of the picture's name and size, light where the subject is.
    """
    files = _MaskFiles(roots)
    return Alteration("white outside a mask file", files.hash_of, files.apply)


def masks_from_segmenter(segmenter: Segmenter, name: str) -> Alteration:
    """Masks that a segmenter makes; `name` identifies it and its weights for the cache."""
    made = _Segmented(segmenter)
    return Alteration(f"white outside the mask of {name}", made.hash_of, made.apply)


def on_white(picture: Image.Image, mask: Image.Image, name: str) -> Image.Image:
    """The picture where the mask is light, white elsewhere. Raises: UsageError for a mask of another size or empty."""
    if mask.size != picture.size:
        raise UsageError(
            f"the mask of {name} is {mask.size}, the picture {picture.size}; masks have the picture's size"
        )
    chosen = mask.convert("L").point(_threshold())
    if not np.asarray(chosen).any():
        raise UsageError(f"the mask of {name} is empty: no subject is marked in it")
    return Image.composite(picture, Image.new("RGB", picture.size, WHITE), chosen)


def _threshold() -> list[int]:
    return [0] * 128 + [255] * 128


class _MaskFiles:
    def __init__(self, roots: dict[Path, Path]) -> None:
        self._roots = roots

    def find(self, picture: Path) -> Path:
        for pictures, masks in self._roots.items():
            if picture.is_relative_to(pictures):
                found = (masks / picture.relative_to(pictures)).with_suffix(".png")
                if not found.is_file():
                    raise MissingError(f"{picture} has no mask: {found} is not there")
                return found
        raise MissingError(f"{picture} has no mask: no folder of masks is given for its folder")

    def hash_of(self, picture: Path) -> str:
        return sha256(self.find(picture))

    def apply(self, path: Path, picture: Image.Image) -> Image.Image:
        return on_white(picture, open_image(self.find(path)), str(path))


class _Segmented:
    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    def hash_of(self, picture: Path) -> str:
        return ""  # the picture and the segmenter's name say it all

    def apply(self, path: Path, picture: Image.Image) -> Image.Image:
        return on_white(picture, self._segmenter(picture), str(path))

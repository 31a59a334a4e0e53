"""Pictures without their backgrounds, for similarity that sees the subject alone. No torch.

Masks are files of the user's, or made by a segmenter that is told the subject's class noun. Those are kept in a folder
to be looked at, named by the picture's bytes, the segmenter and the noun: one that is there is right.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.evaluation.extractors.cache import Alteration
from kgcli.files import sha256, write_whole

FOLDER = "masks"
WHITE = (255, 255, 255)
BACKGROUND = {"background": "white"}


class Segmenter(Protocol):
    """Finds in a picture what a noun names."""

    def facts(self) -> dict[str, str]:
        """Class, weights, prompt and threshold, for the protocol."""
        ...

    def mask(self, picture: Image.Image, noun: str) -> Image.Image:
        """A mask (L) of the picture's size, light where the thing is."""
        ...


def masks_from_files(roots: dict[Path, Path]) -> Alteration:
    """Masks that lie in folders like those of the pictures: roots names, for a folder of pictures, that of its masks.

    A mask is a PNG of the picture's name and size, light where the subject is.
    """
    files = _MaskFiles(roots)
    return Alteration({**BACKGROUND, "mask": "files"}, files.hash_of, files.apply)


def masks_from_segmenter(segmenter: Segmenter, nouns: Mapping[str, str], folder: Path) -> dict[str, Alteration]:
    """For each subject, given with its class noun, the masks that a segmenter makes, kept in a folder.

    Where nothing is marked, the whole picture is left, for a benchmark has to score all of its pictures.
    """
    facts = {**BACKGROUND, **segmenter.facts(), "nothing_marked": "the whole picture"}
    made = {subject: _Segmented(segmenter, facts, noun, folder) for subject, noun in nouns.items()}
    return {subject: Alteration(facts, one.hash_of, one.apply, one.is_empty) for subject, one in made.items()}


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
        return on_white(picture, open_image(self.find(path), srgb=False), str(path))


class _Segmented:
    def __init__(self, segmenter: Segmenter, facts: Mapping[str, str], noun: str, folder: Path) -> None:
        self._segmenter = segmenter
        self._facts = facts
        self._noun = noun
        self._folder = folder

    def hash_of(self, picture: Path) -> str:
        return self._noun  # the rest is in the facts and the picture's own hash

    def apply(self, path: Path, picture: Image.Image) -> Image.Image:
        mask = self._mask(path, picture)
        return picture if mask.getbbox() is None else on_white(picture, mask, str(path))

    def is_empty(self, path: Path) -> bool:
        return self._mask(path).getbbox() is None

    def _mask(self, path: Path, picture: Image.Image | None = None) -> Image.Image:
        kept = self._file(path)
        mask = _read(kept)
        if mask is None:
            mask = self._segmenter.mask(picture or open_image(path, srgb=False), self._noun)
            content = io.BytesIO()
            mask.save(content, "PNG")
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, content.getvalue())
        return mask

    def _file(self, path: Path) -> Path:
        named = json.dumps([sha256(path), self._noun, self._facts], sort_keys=True)
        words = [path.parent.name, path.stem, self._noun.replace(" ", "_")]
        return self._folder / f"{'-'.join(words)}-{hashlib.sha256(named.encode()).hexdigest()[:32]}.png"


def _read(path: Path) -> Image.Image | None:
    """A kept mask; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        return open_image(path, srgb=False).convert("L")
    except ImageError:
        return None

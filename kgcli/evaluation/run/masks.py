"""Background removal, for similarity of the subjects alone.

Masks are the user's files, or come from a segmenter prompted with the subject's class noun. The latter are kept in a
folder under names that hash the image, the segmenter and the noun, so an existing mask is always valid.
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
    """Locates the object that a noun names."""

    def facts(self) -> dict[str, str]:
        """Return class, weights, prompt and threshold, for the protocol."""
        ...

    def mask(self, image: Image.Image, noun: str) -> Image.Image:
        """Return a mask (L) of the image's size, light on the object."""
        ...


def masks_from_files(roots: dict[Path, Path]) -> Alteration:
    """Return the masks stored in folders laid out as those of the images; `roots` maps image to mask folders.

    A mask is a PNG with the image's name and size, light on the subject.
    """
    files = _MaskFiles(roots)
    return Alteration({**BACKGROUND, "mask": "files"}, files.hash_of, files.apply)


def masks_from_segmenter(segmenter: Segmenter, nouns: Mapping[str, str], folder: Path) -> dict[str, Alteration]:
    """Return the segmenter's masks for each subject (mapped to its class noun), kept in a folder.

    An empty mask leaves the whole image, since a benchmark must score all images.
    """
    facts = {**BACKGROUND, **segmenter.facts(), "nothing_marked": "the whole picture"}
    made = {subject: _Segmented(segmenter, facts, noun, folder) for subject, noun in nouns.items()}
    return {subject: Alteration(facts, one.hash_of, one.apply, one.is_empty) for subject, one in made.items()}


def on_white(image: Image.Image, mask: Image.Image, name: str) -> Image.Image:
    """Replace the image by white where the mask is dark. Raises: UsageError for a mask of another size or empty."""
    if mask.size != image.size:
        raise UsageError(f"the mask of {name} has size {mask.size}, the image {image.size}; the sizes must match")
    chosen = mask.convert("L").point(_threshold())
    if not np.asarray(chosen).any():
        raise UsageError(f"the mask of {name} is empty; mark the subject in it")
    return Image.composite(image, Image.new("RGB", image.size, WHITE), chosen)


def _threshold() -> list[int]:
    return [0] * 128 + [255] * 128


class _MaskFiles:
    def __init__(self, roots: dict[Path, Path]) -> None:
        self._roots = roots

    def find(self, image: Path) -> Path:
        for images, masks in self._roots.items():
            if image.is_relative_to(images):
                found = (masks / image.relative_to(images)).with_suffix(".png")
                if not found.is_file():
                    raise MissingError(f"{image} has no mask: {found} does not exist")
                return found
        raise MissingError(f"{image} has no mask: no folder of masks is given for its folder")

    def hash_of(self, image: Path) -> str:
        return sha256(self.find(image))

    def apply(self, path: Path, image: Image.Image) -> Image.Image:
        return on_white(image, open_image(self.find(path), srgb=False), str(path))


class _Segmented:
    def __init__(self, segmenter: Segmenter, facts: Mapping[str, str], noun: str, folder: Path) -> None:
        self._segmenter = segmenter
        self._facts = facts
        self._noun = noun
        self._folder = folder

    def hash_of(self, image: Path) -> str:
        return self._noun  # the rest is in the fingerprint and the image's own hash

    def apply(self, path: Path, image: Image.Image) -> Image.Image:
        mask = self._mask(path, image)
        return image if mask.getbbox() is None else on_white(image, mask, str(path))

    def is_empty(self, path: Path) -> bool:
        return self._mask(path).getbbox() is None

    def _mask(self, path: Path, image: Image.Image | None = None) -> Image.Image:
        kept = self._file(path)
        mask = _read(kept)
        if mask is None:
            mask = self._segmenter.mask(image or open_image(path, srgb=False), self._noun)
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
    """Return a kept mask; None if it is absent or damaged."""
    if not path.is_file():
        return None
    try:
        return open_image(path, srgb=False).convert("L")
    except ImageError:
        return None

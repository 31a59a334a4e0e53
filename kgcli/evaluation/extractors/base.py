"""The interface of feature extractors: images and texts to vectors, for all suites and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image


class ImageExtractor(Protocol):
    """Images to vectors of unit length."""

    name: str

    def facts(self) -> dict[str, Any]:
        """Return the fingerprint for the protocol: architecture, transform and the hash of its weights. JSON values."""
        ...

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed images to (N, D), float32, rows of length 1. A row does not depend on the batch size."""
        ...


class TextExtractor(ImageExtractor, Protocol):
    """Images and texts to vectors of one space."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts to (N, D), float32, rows of length 1. Raises: UsageError for a text that is too long."""
        ...


@dataclass(frozen=True)
class Extractors:
    """Extractors of a subject suite: `dino` for identity, `clip` for identity and text, `dinov2` on demand."""

    dino: ImageExtractor
    clip: TextExtractor
    dinov2: ImageExtractor | None = None

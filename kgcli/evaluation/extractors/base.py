"""What turns pictures and texts into vectors that are compared: one interface for all suites and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image


class PictureExtractor(Protocol):
    """Pictures to vectors of unit length."""

    name: str

    def facts(self) -> dict[str, Any]:
        """Architecture, transform and the hash of its weights, for the protocol. JSON values."""
        ...

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, D), float32, rows of length 1. A picture's row does not depend on its neighbours' number."""
        ...


class TextExtractor(PictureExtractor, Protocol):
    """Pictures and texts to vectors of one space."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D), float32, rows of length 1. Raises: UsageError for a text longer than it takes."""
        ...


@dataclass(frozen=True)
class Extractors:
    """What a suite of subjects is scored with: `dino` for looks, `clip` for looks and words, `dinov2` on demand."""

    dino: PictureExtractor
    clip: TextExtractor
    dinov2: PictureExtractor | None = None

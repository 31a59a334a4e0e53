"""The two extractors of nano pictures: networks of `evaluators`, which no generator was trained with.

Pictures go through one at a time: in a batch, the last bits of a row would depend on its neighbours' number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kgcli.errors import UsageError
from kgcli.evaluation.extractors.base import Extractors, PictureExtractor
from kgcli.evaluation.run.folder import sha256
from kgcli.model.nano_evaluators import WEIGHTS, EvalClip, EvalVit
from kgcli.model.nano_recognisers import to_pixels
from kgcli.weights.shipped import PACKAGE

SHIPPED = PACKAGE / "nano" / "evaluators"
CLIP_FOLDER, DINO_FOLDER = "eval_clip", "eval_dino"
SIZE = 64  # pixels
TRANSFORM = f"PIL bicubic {SIZE}, values in [-1, 1]"

Rows = NDArray[np.float32]


class NanoDino:
    """The features of the self-supervised ViT: looks, whatever the background."""

    name = "nano-dino"

    def __init__(self, folder: Path = SHIPPED / DINO_FOLDER) -> None:
        self._model = EvalVit.load(folder)
        self._sha256 = sha256(folder / WEIGHTS)

    def facts(self) -> dict[str, Any]:
        """Architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": "timm ViT trained by SimCLR on the nano world, projected feature",
            "sizes": self._model.config,
            "transform": TRANSFORM,
            "precision": "float32",
            "weights_sha256": self._sha256,
        }

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Rows:
        """(N, D), rows of length 1."""
        return _one_by_one(self._model, [_fitted(picture) for picture in pictures], self._model.projection.out_features)


class NanoClip:
    """The CLIP of evaluation: pictures and captions of the nano world."""

    name = "nano-clip"

    def __init__(self, folder: Path = SHIPPED / CLIP_FOLDER) -> None:
        self._model = EvalClip.load(folder)
        self._sha256 = sha256(folder / WEIGHTS)

    def facts(self) -> dict[str, Any]:
        """Architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": "convolutional CLIP trained on the nano world",
            "sizes": self._model.config,
            "transform": TRANSFORM,
            "texts": "as they are: no prefix; plain cosine",
            "precision": "float32",
            "weights_sha256": self._sha256,
        }

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Rows:
        """(N, D), rows of length 1."""
        return _one_by_one(self._model.embed_pictures, [_fitted(picture) for picture in pictures], self._width)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Rows:
        """(N, D), rows of length 1. Raises: UsageError for a text of more tokens than the tower reads."""
        return _one_by_one(self._model.embed_tokens, [self._tokens(text) for text in texts], self._width)

    def _tokens(self, text: str) -> Tensor:
        tokenizer = self._model.tokenizer
        most = int(tokenizer.model_max_length)
        num = len(tokenizer(text).input_ids)
        if num > most:
            raise UsageError(f"a text to score has {num} tokens, {self.name} takes {most}; shorten {text[:60]!r}...")
        return tokenizer(text, padding="max_length", return_tensors="pt").input_ids

    @property
    def _width(self) -> int:
        return self._model.picture_projection.out_features


class UnitVariance:
    """An extractor whose rows have length sqrt(D), as rows of unit variance have: KID is made for those."""

    def __init__(self, extractor: PictureExtractor) -> None:
        self.name = extractor.name
        self._extractor = extractor

    def facts(self) -> dict[str, Any]:
        """Those of the extractor, and the length."""
        return {**self._extractor.facts(), "length": "sqrt(D)"}

    def pictures(self, pictures: Sequence[Image.Image]) -> Rows:
        """(N, D), rows of length sqrt(D)."""
        rows = self._extractor.pictures(pictures)
        longer: Rows = rows * np.float32(np.sqrt(rows.shape[1]))
        return longer


def nano_extractors(folder: Path = SHIPPED) -> Extractors:
    """Both extractors, as the nano suites score with. Raises: MissingError."""
    return Extractors(dino=NanoDino(folder / DINO_FOLDER), clip=NanoClip(folder / CLIP_FOLDER))


def _fitted(picture: Image.Image) -> Tensor:
    return to_pixels([picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)])


def _one_by_one(encode: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], width: int) -> Rows:
    if not inputs:
        return np.zeros((0, width), np.float32)
    rows = torch.cat([encode(one) for one in inputs]).double().numpy()
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit

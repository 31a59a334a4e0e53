"""The two extractors of nano images: networks of `nano_evaluators`, which no generator is trained with.

Images go through one at a time: in a batch, the last bits of a row would depend on the batch size. Networks and
torch are loaded on first use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.extractors.base import Extractors, ImageExtractor
from kgcli.evaluation.extractors.processes import compute_exactly
from kgcli.files import sha256
from kgcli.weights.shipped import EVALUATORS
from kgcli.world.view import VIEW_SIZE, WORLD, check_world, how_to_train, view

if TYPE_CHECKING:
    from torch import Tensor

    from kgcli.model.nano_evaluators import EvalClip, EvalVit

CLIP_FOLDER, DINO_FOLDER = "eval_clip", "eval_dino"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
TRANSFORM = f"PIL bicubic {VIEW_SIZE}, values in [-1, 1]"

Rows = NDArray[np.float32]


class NanoDino:
    """Features of the self-supervised ViT: identity, whatever the background."""

    name = "nano-dino"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config, self._sha256 = _identify(folder, DINO_FOLDER)

    def facts(self) -> dict[str, Any]:
        """Return architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": "timm ViT trained by SimCLR on the nano world, projected feature",
            "sizes": self._config,
            "transform": TRANSFORM,
            "precision": "float32",
            "weights_sha256": self._sha256,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return type(self), (self._folder,)

    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images to (N, D), rows of length 1."""
        return _one_by_one(self._model, [_fitted(image) for image in images], self._model.projection.out_features)

    @cached_property
    def _model(self) -> EvalVit:
        from kgcli.model.nano_evaluators import EvalVit

        compute_exactly("cpu")
        return EvalVit.load(self._folder)


class NanoClip:
    """The CLIP of evaluation: images and captions of the nano world."""

    name = "nano-clip"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config, self._sha256 = _identify(folder, CLIP_FOLDER)

    def facts(self) -> dict[str, Any]:
        """Return architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": "convolutional CLIP trained on the nano world",
            "sizes": self._config,
            "transform": TRANSFORM,
            "texts": "as they are: no prefix; plain cosine",
            "precision": "float32",
            "weights_sha256": self._sha256,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return type(self), (self._folder,)

    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images to (N, D), rows of length 1."""
        return _one_by_one(self._model.embed_images, [_fitted(image) for image in images], self._width)

    def texts(self, texts: Sequence[str]) -> Rows:
        """Embed texts to (N, D), rows of length 1. Raises: UsageError for a text of too many tokens."""
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

    @cached_property
    def _model(self) -> EvalClip:
        from kgcli.model.nano_evaluators import EvalClip

        compute_exactly("cpu")
        return EvalClip.load(self._folder)


class UnitVariance:
    """An extractor with rows of length sqrt(D), that is of unit variance, as KID expects."""

    def __init__(self, extractor: ImageExtractor) -> None:
        self.name = extractor.name
        self._extractor = extractor

    def facts(self) -> dict[str, Any]:
        """Return the extractor's fingerprint plus the length of rows."""
        return {**self._extractor.facts(), "length": "sqrt(D)"}

    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images to (N, D), rows of length sqrt(D)."""
        rows = self._extractor.images(images)
        longer: Rows = rows * np.float32(np.sqrt(rows.shape[1]))
        return longer


def nano_extractors(folder: Path = EVALUATORS) -> Extractors:
    """Return both extractors of the nano suites, those that ship or those of a folder.

    Raises: MissingError; IncompatibleError for extractors of another world.
    """
    return Extractors(dino=NanoDino(folder / DINO_FOLDER), clip=NanoClip(folder / CLIP_FOLDER))


def _identify(folder: Path, stage: str) -> tuple[dict[str, Any], str]:
    """Return the sizes of a network and the hash of its weights. Raises: MissingError, IncompatibleError."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MissingError(f"there is no {stage} in {folder}; train it with {how_to_train(stage)}")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    check_world(config, folder, stage)
    return {name: value for name, value in config.items() if name != WORLD}, sha256(folder / WEIGHTS)


def _fitted(image: Image.Image) -> Tensor:
    from kgcli.model.nano_recognisers import to_pixels

    return to_pixels([view(image)])


def _one_by_one(encode: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], width: int) -> Rows:
    import torch

    if not inputs:
        return np.zeros((0, width), np.float32)
    with torch.inference_mode():
        rows = torch.cat([encode(one) for one in inputs]).double().numpy()
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit

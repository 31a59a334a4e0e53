"""OpenAI's CLIP ViT-B/32, the extractor of published CLIP scores, and helpers of the published extractors.

Images and texts go through in batches of one size, so that no row depends on how many there are.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor, nn

from kgcli.data.images import CLIP_MEAN, CLIP_STD
from kgcli.errors import IncompatibleError, UsageError
from kgcli.evaluation.extractors.weight_files import Weights

CLIP_ARCHITECTURE = "ViT-B-32-quickgelu"
RANDOM = "random"  # in place of a hash
MAX_TOKENS = 77  # of CLIP, with start and end
SIZE = 224  # pixels
BATCH = 8  # inputs at once; CLIP takes 1.4 times as long one by one, and as long as this in larger batches

Rows = NDArray[np.float32]


def clip_transform() -> Callable[[Image.Image], Tensor]:
    """Return CLIP's transform: bicubic to 224 pixels on the shorter side, the middle 224."""
    return image_transform(SIZE, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic")


class _Clip(Protocol):
    """The methods used of an open_clip model, whose class torch's typing hides."""

    def encode_image(self, image: Tensor) -> Tensor: ...

    def encode_text(self, text: Tensor) -> Tensor: ...


class ClipExtractor:
    """OpenAI's CLIP ViT-B/32, for images and texts."""

    name = "clip"

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        try:
            with warnings.catch_warnings():  # TorchScript is deprecated, and the published file's only format
                warnings.simplefilter("ignore", FutureWarning)
                model = open_clip.load_openai_model(str(weights.path), precision="fp32", device="cpu")
        except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
            raise IncompatibleError(f"{weights.path} does not hold OpenAI's CLIP ({first_line(error)})") from None
        self._take(model, weights.sha256, device)
        self._made_by: tuple[Callable[..., ClipExtractor], Any] = ClipExtractor, (weights, device)

    @classmethod
    def random_weights(cls, seed: int = 0, device: str = "cpu") -> ClipExtractor:
        """Make the same network with random weights, for tests."""
        extractor = cls.__new__(cls)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            extractor._take(open_clip.create_model(CLIP_ARCHITECTURE, pretrained=None), f"{RANDOM}-{seed}", device)
        extractor._made_by = cls.random_weights, (seed, device)
        return extractor

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return self._made_by

    def facts(self) -> dict[str, Any]:
        """Return architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": "OpenAI CLIP ViT-B/32, QuickGELU",
            "transform": "PIL bicubic 224, centre 224, CLIP mean and std",
            "texts": "as they are: no prefix; plain cosine",
            "precision": f"float32, batches of {BATCH}",
            "weights_sha256": self._sha256,
        }

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images to (N, 512), rows of length 1."""
        pixels = [self._transform(image.convert("RGB")) for image in images]
        return in_batches(cast(_Clip, self._model).encode_image, pixels, self._device)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Rows:
        """Embed texts to (N, 512), rows of length 1. Raises: UsageError for a text of more than 77 tokens."""
        return in_batches(cast(_Clip, self._model).encode_text, list(clip_tokens(texts)), self._device)

    def _take(self, model: nn.Module, sha256: str, device: str) -> None:
        self._model = model.eval().requires_grad_(False).float().to(device)
        self._sha256, self._device = sha256, device
        self._transform = clip_transform()


def clip_tokens(texts: Sequence[str]) -> Tensor:
    """Tokenize to (N, 77). Raises: UsageError for more than 77 tokens, which open_clip would truncate silently."""
    tokenizer = open_clip.get_tokenizer(CLIP_ARCHITECTURE)
    for text in texts:
        num = len(tokenizer.encode(text)) + 2  # start and end
        if num > MAX_TOKENS:
            raise UsageError(f"a text to score has {num} tokens, CLIP takes {MAX_TOKENS}; shorten {text[:60]!r}...")
    return tokenizer(list(texts))


def in_batches(encode: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], device: str, *, unit: bool = True) -> Rows:
    """Encode inputs in batches of BATCH to (N, D), rows of length 1 unless `unit` is off.

    The last batch is filled up: in one of another size, the last bits of a row could differ.
    """
    if not inputs:
        return np.zeros((0, 0), np.float32)
    found = []
    for start in range(0, len(inputs), BATCH):
        batch = list(inputs[start : start + BATCH])
        filled = torch.stack(batch + batch[-1:] * (BATCH - len(batch)))
        found.append(encode(filled.to(device))[: len(batch)].double().cpu())
    rows = torch.cat(found)
    return (torch.nn.functional.normalize(rows, dim=1) if unit else rows).float().numpy()


def first_line(error: BaseException) -> str:
    """Return the first line of an error, shortened."""
    return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__

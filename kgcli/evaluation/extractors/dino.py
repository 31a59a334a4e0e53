"""The class token of self-supervised ViTs: DINO and DINOv2 for subjects, DINOv2 for sets.

Source: DINO (arXiv:2104.14294); DINOv2 (arXiv:2304.07193); FD-DINOv2: Exposing flaws of generative model evaluation
metrics (arXiv:2306.04675).
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torchvision import transforms

from kgcli.errors import IncompatibleError
from kgcli.evaluation.extractors.published import (
    BATCH,
    RANDOM,
    SIZE,
    Rows,
    first_line,
    in_batches,
)
from kgcli.evaluation.extractors.weight_files import Weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRID = SIZE // 14  # patches of a side
OFFSET = 0.1  # of the official interpolation, in patches


def dino_transform() -> Callable[[Image.Image], Tensor]:
    """Return DINO's transform for evaluation: bicubic to 256 pixels on the shorter side, the middle 224."""
    return transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def square_transform() -> Callable[[Image.Image], Tensor]:
    """Return the transform of FD-DINOv2: Pillow's bicubic to 224 x 224, whatever the image's shape."""
    return transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def _unchanged(state: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True, kw_only=True)
class Use:
    """A published use of one of the networks."""

    name: str  # of its file in `weight_files.TABLE`
    architecture: str  # timm's
    transform: Callable[[], Callable[[Image.Image], Tensor]]
    words: str  # the transform
    title: str = ""  # of the network, in messages
    unit: bool = True  # whether rows are of length 1
    token: str = "class token after the norm"
    adapt: Callable[[dict[str, Tensor], VisionTransformer], dict[str, Tensor]] = _unchanged


def resize_positions(positions: Tensor) -> Tensor:
    """Resize position embeddings of 518 pixels to 224, (1, 1 + 16 * 16, D), as the official code does.

    It scales by (16 + 0.1) / 37 without antialias, so that timm's own way would give other numbers.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side == GRID:
        return positions
    patches = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (GRID + OFFSET) / side
    resized = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1].float(), resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _of_dinov2(state: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Convert the official weights to timm's names, with positions for 224 pixels."""
    resized = {**state, "pos_embed": resize_positions(state["pos_embed"])}
    adapted: dict[str, Tensor] = checkpoint_filter_fn(resized, model)
    return adapted


DINO = Use(
    name="dino",
    architecture="vit_small_patch16_224.dino",
    title="DINO ViT-S/16",
    transform=dino_transform,
    words="PIL bicubic 256, centre 224, ImageNet mean and std",
)
# The network and transform of DreamBench++ (arXiv:2406.16855); the transform is DINOv2's own for evaluation.
SIMILARITY = Use(
    name="dinov2",
    architecture="vit_small_patch14_dinov2.lvd142m",
    transform=dino_transform,
    words="PIL bicubic 256, centre 224, ImageNet mean and std",
    token="official positions, class token after the norm",
    adapt=_of_dinov2,
)
DISTANCE = Use(
    name="dinov2-large",
    architecture="vit_large_patch14_dinov2.lvd142m",
    transform=square_transform,
    words="PIL bicubic 224 x 224, ImageNet mean and std",
    unit=False,
    token="official positions, class token after the norm",
    adapt=_of_dinov2,
)


class DinoExtractor:
    """The class token of a network after its last norm."""

    def __init__(self, use: Use, weights: Weights, device: str = "cpu") -> None:
        model = _bare(use)
        try:
            state = torch.load(weights.path, map_location="cpu", weights_only=True)
            model.load_state_dict(use.adapt(state, model))
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError, AttributeError) as error:
            raise IncompatibleError(
                f"{weights.path} does not hold {use.title or use.architecture} ({first_line(error)})"
            ) from None
        self._take(use, model, weights.sha256, device)
        self._made_by: tuple[Callable[..., DinoExtractor], Any] = DinoExtractor, (use, weights, device)

    @classmethod
    def random_weights(cls, use: Use, seed: int = 0, device: str = "cpu") -> DinoExtractor:
        """Make the same network with random weights, for tests."""
        extractor = cls.__new__(cls)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            extractor._take(use, _bare(use), f"{RANDOM}-{seed}", device)
        extractor._made_by = cls.random_weights, (use, seed, device)
        return extractor

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return self._made_by

    def facts(self) -> dict[str, Any]:
        """Return architecture, transform and weights."""
        return {
            "extractor": self.name,
            "architecture": f"timm {self._use.architecture}, {self._use.token}",
            "transform": self._use.words,
            "precision": f"float32, batches of {BATCH}",
            "weights_sha256": self._sha256,
        }

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images: (N, 384), rows of length 1, for subjects; (N, 1024), not normalised, for sets."""
        pixels = [self._transform(image.convert("RGB")) for image in images]
        return in_batches(self._model, pixels, self._device, unit=self._use.unit)

    def _take(self, use: Use, model: VisionTransformer, sha256: str, device: str) -> None:
        self.name = use.name
        self._use, self._sha256, self._device = use, sha256, device
        self._model = model.eval().requires_grad_(False).float().to(device)
        self._transform = use.transform()


def _bare(use: Use) -> VisionTransformer:
    model = timm.create_model(use.architecture, pretrained=False, num_classes=0, img_size=SIZE)
    assert isinstance(model, VisionTransformer)
    return model

"""The four preprocessing protocols for Inception features of published FIDs.

A preset defines how real and generated images become bytes, and how bytes become the network's 299 pixels. Networks
and their resizing are torchmetrics' and clean-fid's own. Images go through one at a time, as in `published`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from kgcli.errors import IncompatibleError, UsageError
from kgcli.evaluation.extractors.weight_files import Weights

NUM_FEATURES = 2048
SIDE = 256  # pixels
Rows = NDArray[np.float32]


def tensor_256(image: Image.Image) -> Tensor:
    """Return bytes (3, 256, 256): floats, bilinear without antialias to 256 on the shorter side, the middle, truncated.

    Source: the published KOSMOS-G evaluation, whose torchvision did not antialias tensors.
    """
    pixels = F.to_tensor(image)
    pixels = F.resize(pixels, [SIDE], interpolation=InterpolationMode.BILINEAR, antialias=False)
    return (F.center_crop(pixels, [SIDE, SIDE]) * 255).to(torch.uint8)


def pil_256(image: Image.Image) -> Tensor:
    """Return bytes (3, 256, 256): Pillow's bicubic to 256 on the shorter side, the middle."""
    smaller = F.resize(image, [SIDE], interpolation=InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(smaller, [SIDE, SIDE]))


def native(image: Image.Image) -> Tensor:
    """Return the image's bytes at native size, (3, H, W)."""
    return F.pil_to_tensor(image)


def clean_299(pixels: Tensor) -> Tensor:
    """Resize bytes (3, H, W) to float32 (3, 299, 299) in [0, 255], as clean-fid."""
    with warnings.catch_warnings():  # clean-fid passes Pillow's deprecated mode argument
        warnings.simplefilter("ignore", DeprecationWarning)
        resized = build_resizer("clean")(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published protocol of FID."""

    real: Callable[[Image.Image], Tensor]  # to bytes
    fake: Callable[[Image.Image], Tensor]
    weights: str  # in `weight_files.TABLE`


PRESETS = {
    "kosmosg": Preset(real=tensor_256, fake=native, weights="inception"),
    "kosmosg-rescore": Preset(real=tensor_256, fake=tensor_256, weights="inception"),
    "clean": Preset(real=pil_256, fake=native, weights="inception-clean"),
    "legacy256": Preset(real=pil_256, fake=pil_256, weights="inception"),
}
PIXEL_PATHS: dict[Callable[[Image.Image], Tensor], str] = {
    tensor_256: "tensor bilinear 256 without antialias, centre 256, truncated to bytes",
    pil_256: "PIL bicubic 256, centre 256",
    native: "native size",
}


def preset(name: str) -> Preset:
    """Return a preset by its name. Raises: UsageError that lists the presets."""
    if name not in PRESETS:
        raise UsageError(f"{name} is not an FID preset; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


class TorchFidelityInception:
    """Bytes (3, H, W) to features: TensorFlow 1's bilinear to 299, then the network that was ported from it."""

    words = "torchmetrics Inception, TF1 bilinear to 299"

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        self.sha256 = weights.sha256
        self._weights, self._device = weights, device
        try:
            network = NoTrainInceptionV3("inception-v3-compat", [str(NUM_FEATURES)], str(weights.path), antialias=False)
        except (RuntimeError, KeyError, EOFError, TypeError, AttributeError) as error:
            raise IncompatibleError(
                f"{weights.path} does not hold torch-fidelity's Inception ({_line(error)})"
            ) from None
        self._network = network.to(device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return type(self), (self._weights, self._device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features (2048,)."""
        return self._network(pixels[None].to(self._device))[0].cpu()


class CleanInception:
    """Bytes (3, H, W) to features: clean-fid's bicubic to 299, in floats, then NVIDIA's TorchScript network."""

    words = "clean-fid Inception, PIL bicubic to 299 in floats"

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        self.sha256 = weights.sha256
        self._weights, self._device = weights, device
        try:
            with warnings.catch_warnings():  # TorchScript is deprecated, and the published file's only format
                warnings.simplefilter("ignore", FutureWarning)
                network = InceptionV3W(str(weights.path.parent), download=False, resize_inside=False)
        except (RuntimeError, AttributeError) as error:
            raise IncompatibleError(f"{weights.path} does not hold a TorchScript Inception ({_line(error)})") from None
        self._network = network.eval().to(device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process."""
        return type(self), (self._weights, self._device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features (2048,)."""
        return self._network(clean_299(pixels)[None].to(self._device))[0].cpu()


NETWORKS: dict[str, Callable[[Weights, str], TorchFidelityInception | CleanInception]] = {
    "inception": TorchFidelityInception,
    "inception-clean": CleanInception,
}


class InceptionExtractor:
    """One side of a preset: images to features, not normalised."""

    def __init__(
        self,
        network: TorchFidelityInception | CleanInception,
        to_bytes: Callable[[Image.Image], Tensor],
    ) -> None:
        self.name = "inception"
        self._network = network
        self._to_bytes = to_bytes

    def facts(self) -> dict[str, Any]:
        """Return pixel path, network and weights."""
        return {
            "extractor": self.name,
            "architecture": self._network.words,
            "transform": PIXEL_PATHS[self._to_bytes],
            "precision": "float32",
            "weights_sha256": self._network.sha256,
        }

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Rows:
        """Embed images to (N, 2048)."""
        rows = [self._network(self._to_bytes(image.convert("RGB"))) for image in images]
        return torch.stack(rows).float().numpy() if rows else np.zeros((0, NUM_FEATURES), np.float32)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]

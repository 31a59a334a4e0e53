"""Control maps of a photo: edges and scribbles by OpenCV, depth and segmentation by transformers.

Every function takes an upright RGB image of the output size and returns an RGB map of the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kgcli.errors import IncompatibleError, MissingError, UsageError

CANNY_THRESHOLDS = (100, 200)  # as in ControlNet's own example
FINE_BLUR, COARSE_BLUR = 0.5, 5.0  # pixels (sigma); strokes are where the two differ
SCRIBBLE_THRESHOLD = 32  # of 255
# RGB of the 150 classes of ADE20K by class index, as the segmentation ControlNet was trained on.
ADE20K_COLOURS = bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33"
    "ff06528fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff"
    "08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ff"
    "eb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff"
    "0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad"
    "0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa"
    "8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3"
    "ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff"
    "00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)


def fit_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image to cover a size (width, height in pixels) and crop it to its centre."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def make_map(kind: str, image: Image.Image, maker: str = "", *, local_files_only: bool = False) -> Image.Image:
    """Make the control map of an image; `maker` is the transformers folder or Hub id for depth and seg.

    Raises: UsageError for another kind; MissingError, IncompatibleError for the maker.
    """
    if kind in _BY_OPENCV:
        return Image.fromarray(np.repeat(_BY_OPENCV[kind](np.asarray(image))[..., None], 3, axis=2))
    if kind in _BY_TRANSFORMERS:
        return _BY_TRANSFORMERS[kind](image, maker, local_files_only)
    raise UsageError(f"no map of the kind {kind} can be made; there are {', '.join([*_BY_OPENCV, *_BY_TRANSFORMERS])}")


def _canny(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return thin edges, white on black."""
    import cv2

    return np.asarray(cv2.Canny(np.ascontiguousarray(pixels), *CANNY_THRESHOLDS), np.uint8)


def _scribble(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return broad strokes where the image is darker than its surroundings, white on black."""
    import cv2

    fine, coarse = (cv2.GaussianBlur(pixels, (0, 0), sigma).astype(np.int16) for sigma in (FINE_BLUR, COARSE_BLUR))
    return np.where((coarse - fine).max(axis=2) > SCRIBBLE_THRESHOLD, 255, 0).astype(np.uint8)


def _soft_edge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the gradient of brightness, the strongest white."""
    import cv2

    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), 1.0).astype(np.float32)
    change = np.hypot(cv2.Scharr(grey, cv2.CV_32F, 1, 0), cv2.Scharr(grey, cv2.CV_32F, 0, 1))
    return (change * (255 / max(float(change.max()), 1e-6))).astype(np.uint8)


def _depth(image: Image.Image, maker: str, local_files_only: bool) -> Image.Image:
    """Return a depth map, the nearest white."""
    import torch
    from transformers import AutoModelForDepthEstimation

    outputs, _ = _predict(AutoModelForDepthEstimation, image, maker, local_files_only)
    resized = torch.nn.functional.interpolate(
        outputs.predicted_depth[:, None], size=image.size[::-1], mode="bicubic", align_corners=False
    )[0, 0]
    nearness = resized - resized.min()  # in the model's own units
    nearness = nearness / (nearness.max() or 1)
    return Image.fromarray((nearness * 255).round().byte().numpy()).convert("RGB")


def _segments(image: Image.Image, maker: str, local_files_only: bool) -> Image.Image:
    """Return a segmentation map in the colours of ADE20K."""
    from transformers import AutoModelForSemanticSegmentation

    outputs, processor = _predict(AutoModelForSemanticSegmentation, image, maker, local_files_only)
    classes = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0].numpy()
    colours = np.frombuffer(ADE20K_COLOURS, np.uint8).reshape(-1, 3)
    if outputs.logits.shape[1] > len(colours):
        raise IncompatibleError(
            f"{maker} has {outputs.logits.shape[1]} classes; a map has the {len(colours)} of ADE20K"
        )
    return Image.fromarray(colours[classes])


def _predict(kind: Any, image: Image.Image, maker: str, local_files_only: bool) -> tuple[Any, Any]:
    """Return the outputs of a transformers model for an image, and its processor."""
    import torch
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(maker, local_files_only=local_files_only)
        model = kind.from_pretrained(maker, local_files_only=local_files_only, use_safetensors=True).eval()
    except OSError as error:
        raise MissingError(f"the map model {maker} is missing or damaged: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise IncompatibleError(f"the map model {maker} cannot be used: {str(error).splitlines()[0]}") from None
    with torch.no_grad():
        return model(**processor(images=image, return_tensors="pt")), processor


_BY_OPENCV: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "canny": _canny,
    "scribble": _scribble,
    "softedge": _soft_edge,
}
_BY_TRANSFORMERS: dict[str, Callable[[Image.Image, str, bool], Image.Image]] = {"depth": _depth, "seg": _segments}

"""Measures without networks: agreement of edges with a map, and the degree of a style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kgcli.inference.adapters.control_maps import make_map
from kgcli.world.rendering import stylize
from kgcli.world.tables import SIZE

TOLERANCE = 2  # pixels of an image of SIZE, in all eight directions; in proportion in others
NUM_LEVELS = 8  # of the histograms of brightness and colourfulness
RIDGE = 1e-3  # on the covariance of features that lie between 0 and 1


def edge_f1(image: Image.Image, wanted: Image.Image) -> float:
    """Return the F1 of an image's canny edge pixels against a map within `TOLERANCE`, in [0, 1].

    Source: the boundary measure of Martin, Fowlkes and Malik (2004), with a fixed tolerance and no one-to-one matching.
    """
    edges, target = (np.asarray(one.convert("L")) > 127 for one in (make_map("canny", image), wanted))
    if not edges.any() or not target.any():
        return float(edges.any() == target.any())
    reach = max(round(TOLERANCE * image.width / SIZE), 1)
    precision = (edges & _widened(target, reach)).sum() / edges.sum()
    recall = (target & _widened(edges, reach)).sum() / target.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


class StyleScale:
    """The degree of a style in an image: 0 as its plain true render, 1 as that render in the style.

    The scale is the direction in brightness, colourfulness and lines along which the style moves all images most
    consistently (Fisher's discriminant of paired differences), fitted to true renders.
    """

    def __init__(self, plain: Sequence[Image.Image], style: str) -> None:
        self.style = style
        moved = _features(self._styled(plain)) - _features(plain)
        self.direction = np.linalg.solve(np.cov(moved.T) + RIDGE * np.eye(moved.shape[1]), moved.mean(0))

    def __call__(self, images: Sequence[Image.Image], truths: Sequence[Image.Image]) -> list[float]:
        """Return the degree of each image; `truths` are the true renders without the style."""
        start = _features(truths) @ self.direction
        length = _features(self._styled(truths)) @ self.direction - start
        return ((_features(images) @ self.direction - start) / length).tolist()

    def _styled(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [stylize(image, self.style) for image in images]


def _features(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Return features (images, features), each in [0, 1]."""
    soft = [image.convert("RGB").filter(ImageFilter.BoxBlur(1)) for image in images]  # as a VAE does anyway
    pixels = np.stack([np.asarray(image, float) for image in soft]) / 255
    luma, chroma = pixels @ (0.299, 0.587, 0.114), np.ptp(pixels, axis=-1)
    darkest = _darkest(luma)
    contrast = -_darkest(-luma) - darkest
    changes = contrast.sum((1, 2)) + 1e-9
    columns = [
        *_histogram(luma),
        *_histogram(chroma),
        contrast.mean((1, 2)),
        (darkest * contrast).sum((1, 2)) / changes,  # darkness where the image changes: lines are black
        (chroma * contrast).sum((1, 2)) / changes,
    ]
    return np.stack(columns, axis=1)


def _histogram(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the fraction of pixels at each level, by image."""
    levels = np.minimum((values * NUM_LEVELS).astype(int), NUM_LEVELS - 1)
    return [(levels == level).mean((1, 2)) for level in range(NUM_LEVELS)]


def _darkest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the minimum of each pixel and its eight neighbours."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return sliding_window_view(padded, (3, 3), axis=(1, 2)).min((-2, -1))


def _widened(edges: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return all pixels within `reach` of an edge."""
    side = 2 * reach + 1
    return sliding_window_view(np.pad(edges, reach), (side, side)).max((-2, -1))

"""Measures by arithmetic alone, no network: are edges where they were asked for, is a picture painted in a style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kgcli.inference.adapters.control_maps import make_map
from kgcli.world.scenes import stylize

TOLERANCE = 1  # pixels, in all eight directions
NUM_LEVELS = 8  # of the histograms of brightness and colourfulness
RIDGE = 1e-3  # on the covariance of features that lie between 0 and 1


def edge_f1(picture: Image.Image, wanted: Image.Image) -> float:
    """How well the canny edges of a picture are those of a map: the F1 of edge pixels within `TOLERANCE`, in [0, 1].

    Source: the boundary measure of Martin, Fowlkes and Malik (2004), with a fixed tolerance and no one-to-one matching.
    """
    drawn, asked = (np.asarray(image.convert("L")) > 127 for image in (make_map("canny", picture), wanted))
    if not drawn.any() or not asked.any():
        return float(drawn.any() == asked.any())
    precision = (drawn & _widened(asked)).sum() / drawn.sum()
    recall = (asked & _widened(drawn)).sum() / asked.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


class StyleScale:
    """How far a picture is painted in a style: 0 as the true render of what it shows, 1 as that render in the style.

    The scale is the one direction of brightness, colourfulness and lines along which the style moves all pictures most
    alike (Fisher's discriminant of paired differences), fitted to true renders.
    """

    def __init__(self, plain: Sequence[Image.Image], style: str) -> None:
        self.style = style
        moved = _features(self._styled(plain)) - _features(plain)
        self.direction = np.linalg.solve(np.cov(moved.T) + RIDGE * np.eye(moved.shape[1]), moved.mean(0))

    def __call__(self, pictures: Sequence[Image.Image], truths: Sequence[Image.Image]) -> list[float]:
        """The place of each picture on the scale; `truths` are true renders of what was asked, without the style."""
        start = _features(truths) @ self.direction
        length = _features(self._styled(truths)) @ self.direction - start
        return ((_features(pictures) @ self.direction - start) / length).tolist()

    def _styled(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        return [stylize(picture, self.style) for picture in pictures]


def _features(pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(pictures, features), each feature in [0, 1]."""
    soft = [picture.convert("RGB").filter(ImageFilter.BoxBlur(1)) for picture in pictures]  # as a VAE's are anyway
    pixels = np.stack([np.asarray(picture, float) for picture in soft]) / 255
    luma, chroma = pixels @ (0.299, 0.587, 0.114), np.ptp(pixels, axis=-1)
    darkest = _darkest(luma)
    contrast = -_darkest(-luma) - darkest
    changes = contrast.sum((1, 2)) + 1e-9
    columns = [
        *_histogram(luma),
        *_histogram(chroma),
        contrast.mean((1, 2)),
        (darkest * contrast).sum((1, 2)) / changes,  # how dark the picture is where it changes: lines are black
        (chroma * contrast).sum((1, 2)) / changes,
    ]
    return np.stack(columns, axis=1)


def _histogram(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The share of pixels at each level, by picture."""
    levels = np.minimum((values * NUM_LEVELS).astype(int), NUM_LEVELS - 1)
    return [(levels == level).mean((1, 2)) for level in range(NUM_LEVELS)]


def _darkest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest of each pixel and its eight neighbours."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return sliding_window_view(padded, (3, 3), axis=(1, 2)).min((-2, -1))


def _widened(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All pixels within `TOLERANCE` of an edge."""
    side = 2 * TOLERANCE + 1
    return sliding_window_view(np.pad(edges, TOLERANCE), (side, side)).max((-2, -1))

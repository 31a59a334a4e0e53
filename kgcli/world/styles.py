"""Styles of the whole image, each made of marks of at least four to eight pixels, which a VAE of factor 8 keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from kgcli.world.oklab import Array
from kgcli.world.scenes import NUM_BLOCKS
from kgcli.world.tables import SIZE

PIXEL = 4  # pixels of the image, the side of one in Minecraft
BLOCK_CONTRAST = 0.09  # largest difference of a block of a Minecraft scene from the scene
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def stylize(image: Array, style: str) -> Array:
    """Return a finished image (SIZE, SIZE, 3) in [0, 1] in `style`; "photo" changes nothing."""
    return np.clip(_STYLES[style](image), 0, 1).astype(np.float32)


def in_blocks(scene: Array) -> Array:
    """Return a scene in Minecraft style: NUM_BLOCKS a side, each a tone of its own, the same in every image."""
    side = SIZE // NUM_BLOCKS
    blocks = _mean_of(scene, side) + BLOCK_CONTRAST * _tones()[..., None]
    return np.clip(blocks, 0, 1).repeat(side, 0).repeat(side, 1)


def _minecraft(image: Array) -> Array:
    small = _saturate(_mean_of(image, PIXEL), 1.2)
    return (np.round(small * 15) / 15).repeat(PIXEL, 0).repeat(PIXEL, 1)


def _oil(image: Array) -> Array:
    """Return flat touches of colour under the relief of the brush."""
    return _saturate(_flattened(image, 4), 1.25) + 0.13 * _strokes()[..., None]


def _watercolor(image: Array) -> Array:
    """Return a pale wash that is darker at outlines, blooms, and fades towards an uneven edge of bare paper."""
    washed = _flattened(image, 3)
    rim = np.clip(np.abs(_flattened(image, 5) - image).max(-1, keepdims=True) * 1.6, 0, 0.35)
    pigment = (1 - washed) * (0.72 + 0.2 * _blooms()[..., None]) + rim * (1 - washed)
    return 1 - pigment * _paper()[..., None]


def _comic(image: Array) -> Array:
    """Return flat, vivid colours between black lines."""
    flat = np.round(_saturate(_flattened(image, 4), 1.4) * 7) / 7
    luma = image @ _LUMA
    contrast = _extreme(luma, 2, np.maximum) - _extreme(luma, 2, np.minimum)
    return flat * (1 - np.clip((contrast - 0.2) / 0.2, 0, 1))[..., None]


def _mean_of(image: Array, side: int) -> Array:
    """Return the mean of each block of side x side pixels."""
    height, width = image.shape[0] // side, image.shape[1] // side
    return image.reshape(height, side, width, side, 3).mean((1, 3))


def _saturate(image: Array, by: float) -> Array:
    gray = (image @ _LUMA)[..., None]
    return np.clip(gray + by * (image - gray), 0, 1)


def _box_means(values: Array, side: int) -> Array:
    """Return means over windows of side x side by their upper left corner, edges repeated: side - 1 more each way."""
    padded = np.pad(values, ((side - 1, side - 1), (side - 1, side - 1), (0, 0)), "edge").astype(np.float64)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def _flattened(image: Array, side: int) -> Array:
    """Return each pixel as the mean of the evenest of the four windows beside it.

    Source: M. Kuwahara et al., "Processing of RI-angiocardiographic images" (1976).
    """
    luma = (image @ _LUMA)[..., None]
    stacked = _box_means(np.concatenate([image, luma, luma * luma], -1), side)
    corners = [(0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1)]
    windows = np.stack([stacked[y : y + len(image), x : x + image.shape[1]] for y, x in corners])
    evenest = (windows[..., 4] - windows[..., 3] ** 2).argmin(0)
    return np.take_along_axis(windows[..., :3], evenest[None, ..., None], 0)[0].astype(np.float32)


def _extreme(values: Array, reach: int, pick: Callable[[Array, Array], Array]) -> Array:
    """Return the largest or smallest value within `reach` pixels along both axes."""
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        shifts = [np.take(padded, range(s, s + values.shape[axis]), axis) for s in range(2 * reach + 1)]
        values = functools.reduce(pick, shifts)
    return values


@functools.cache
def _tones() -> Array:
    """Return a tone in [-1, 1] for each block, all different; row by row."""
    shuffled = np.random.default_rng(13).permutation(NUM_BLOCKS**2)
    return (shuffled / (NUM_BLOCKS**2 - 1) * 2 - 1).reshape(NUM_BLOCKS, NUM_BLOCKS).astype(np.float32)


@functools.cache
def _strokes() -> Array:
    """Return the relief of a brush in [-1, 1], the same in every image: slanting strokes about 7 by 24 pixels."""
    relief = _cloud(29, 2 * SIZE // 24, 2 * SIZE // 7).rotate(35, Image.Resampling.BICUBIC)
    start = SIZE // 2
    return np.asarray(relief, np.float32)[start : start + SIZE, start : start + SIZE]


@functools.cache
def _blooms() -> Array:
    """Return the water blooms in [-1, 1], the same in every image."""
    return np.asarray(_cloud(31, 12, 12), np.float32)[:SIZE, :SIZE]


@functools.cache
def _paper() -> Array:
    """Return the fraction of the wash that the paper takes, 0 at its uneven edge."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    edge = np.minimum(np.minimum(x, SIZE - 1 - x), np.minimum(y, SIZE - 1 - y)) / SIZE
    uneven = np.asarray(_cloud(37, 26, 26), np.float32)[:SIZE, :SIZE]
    return np.clip(edge * 15 - 0.35 + 0.6 * uneven, 0, 1).astype(np.float32)


def _cloud(seed: int, columns: int, rows: int) -> Image.Image:
    """Return smooth noise in [-1, 1], 2 * SIZE pixels square, with so many waves across and down."""
    values = np.random.default_rng(seed).uniform(-1, 1, (rows, columns)).astype(np.float32)
    smooth = Image.fromarray(values).resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(smooth) * 1.3, -1, 1))


_STYLES: dict[str, Callable[[Array], Array]] = {
    "photo": lambda image: image,
    "minecraft": _minecraft,
    "oil": _oil,
    "watercolor": _watercolor,
    "comic": _comic,
}

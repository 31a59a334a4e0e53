"""Backgrounds behind subjects, rendered at twice the size and slightly blurred, as behind a subject in focus."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kgcli.world.oklab import Array
from kgcli.world.tables import SIZE

NUM_VIEWS = 64  # of each scene, rendered once per process
NUM_BLOCKS = 8  # of a Minecraft scene, across and down: 16 pixels each, two latents wide for a VAE of factor 8
_CANVAS = 256  # pixels, square
_BLUR = 2.2  # pixels of the canvas

Rng = np.random.Generator
Colour = tuple[int, int, int] | Array  # of 255
Stops = list[tuple[float, Colour]]


def background(scene: str, variant: int) -> Array:
    """Return the view of a scene that a variant shows: (SIZE, SIZE, 3) in [0, 1]."""
    small = _view(scene, variant % NUM_VIEWS).astype(np.float32) / 255
    if scene not in ("studio", "blocks"):
        small = small * _vignette()
    return np.clip(small, 0, 1)


@functools.cache
def _view(scene: str, view: int) -> NDArray[np.uint8]:
    """Return one of the NUM_VIEWS views of a scene, without the vignette: (SIZE, SIZE, 3), not to be changed."""
    rng = np.random.default_rng([17, list(_SCENES).index(scene), view])
    image = Image.fromarray((np.clip(_SCENES[scene](rng), 0, 1) * 255).astype(np.uint8))
    if scene != "blocks":
        image = image.filter(ImageFilter.GaussianBlur(_BLUR))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


@functools.cache
def _vignette() -> Array:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    return (1.03 - 0.22 * (x**2 + y**2)).astype(np.float32)[..., None]


@functools.cache
def _grid() -> tuple[Array, Array]:
    """Return the places of a canvas's pixels, from top and from left, in [0, 1): each (_CANVAS, _CANVAS)."""
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32) / _CANVAS
    return y, x


def _y() -> Array:
    return _grid()[0]


def _x() -> Array:
    return _grid()[1]


def _jitter(colour: tuple[int, int, int], rng: Rng, by: int = 12) -> Array:
    shift = rng.integers(-by, by + 1) + rng.integers(-by // 2, by // 2 + 1, 3)
    return np.clip(np.array(colour, np.float32) + shift, 0, 255).astype(np.float32)


def _gradient(stops: Stops) -> Array:
    """Return a canvas whose colour changes from top to bottom by (height, colour) stops."""
    rows = np.linspace(0, 1, _CANVAS)
    places = [place for place, _ in stops]
    columns = [np.interp(rows, places, [float(colour[axis]) / 255 for _, colour in stops]) for axis in range(3)]
    return np.repeat(np.stack(columns, -1)[:, None], _CANVAS, 1).astype(np.float32)


def _over(image: Array, mask: Array, colour: Colour) -> Array:
    return image + mask[..., None] * (np.asarray(colour, np.float32) / 255 - image)


def _disc(
    image: Array, at: tuple[float, float], radius: float, soft: float, colour: Colour, opacity: float = 1.0
) -> Array:
    """Return the image with a soft-edged disc; only the pixels near it are touched."""
    reach = radius + soft
    columns, rows = (
        slice(max(0, int((place - reach) * _CANVAS)), max(0, int((place + reach) * _CANVAS) + 2)) for place in at
    )
    distance = np.hypot(_x()[rows, columns] - at[0], _y()[rows, columns] - at[1])
    mask = opacity * np.clip((radius - distance) / soft + 0.5, 0, 1).astype(np.float32)
    image = image.copy()
    image[rows, columns] = _over(image[rows, columns], mask, colour)
    return image


def _below(height: Array | float, slope: float = _CANVAS / 2) -> Array:
    """Return a mask of what lies below a height, which may differ by column."""
    return np.clip((_y() - height) * slope, 0, 1).astype(np.float32)


def _ridge(rng: Rng, base: float, rise: float, num_peaks: int = 6) -> Array:
    """Return a mask below a hilly line."""
    columns = np.interp(np.linspace(0, num_peaks, _CANVAS), np.arange(num_peaks + 1), rng.random(num_peaks + 1))
    smooth = np.convolve(np.pad(columns, 9, "edge"), np.ones(19) / 19, "valid")
    return _below((base - rise * smooth).astype(np.float32)[None])


def _noise(rng: Rng, cells: int) -> Array:
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC))


def _dots(image: Array, rng: Rng, num: int, radii: tuple[float, float], colour: Colour, bottom: float = 1.0) -> Array:
    for _ in range(num):
        at, radius = (rng.uniform(0, 1), rng.uniform(0, bottom)), rng.uniform(*radii)
        image = _disc(image, at, radius, 0.01, colour)
    return image


def _beach(rng: Rng) -> Array:
    sea = rng.uniform(0.34, 0.46)
    sky: Stops = [(0, _jitter((92, 176, 240), rng)), (sea, _jitter((206, 234, 248), rng, 6))]
    water: Stops = [(sea + 0.004, _jitter((36, 140, 196), rng)), (sea + 0.18, _jitter((104, 214, 216), rng))]
    sand: Stops = [(sea + 0.24, _jitter((244, 222, 170), rng, 8)), (1, _jitter((226, 190, 130), rng, 8))]
    image = _gradient([*sky, *water, (sea + 0.2, (250, 250, 244)), *sand])
    image = _disc(image, (rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.22)), 0.05, 0.03, (255, 240, 170))
    return image * (1 + 0.05 * (_noise(rng, 24) - 0.5) * (_y() > sea + 0.22))[..., None]


def _snow(rng: Rng) -> Array:
    sky: Stops = [(0, _jitter((150, 190, 230), rng)), (0.5, _jitter((216, 230, 244), rng, 6)), (1, (230, 238, 248))]
    image = _over(_gradient(sky), _ridge(rng, 0.5, 0.2), _jitter((176, 198, 224), rng))
    image = _over(image, _ridge(rng, 0.64, 0.1, 3), _jitter((246, 250, 254), rng, 3))
    image = _over(image, _ridge(rng, 0.86, 0.08, 3), _jitter((232, 240, 250), rng, 4))
    return _dots(image, rng, 26, (0.006, 0.013), (255, 255, 255))


def _forest(rng: Rng) -> Array:
    leaves: Stops = [(0, _jitter((150, 200, 120), rng)), (0.6, _jitter((70, 130, 70), rng))]
    image = _gradient([*leaves, (0.72, _jitter((62, 112, 52), rng)), (1, _jitter((96, 132, 60), rng))])
    for _ in range(9):
        x, width = rng.uniform(0, 1), rng.uniform(0.015, 0.035)
        trunk = np.clip((width - np.abs(_x() - x)) * 60 + 0.5, 0, 1) * (_y() < 0.72)
        image = _over(image, trunk, _jitter((74, 56, 40), rng))
    for _ in range(22):
        at, radius = (rng.uniform(0, 1), rng.uniform(-0.05, 0.35)), rng.uniform(0.05, 0.13)
        image = _disc(image, at, radius, 0.05, _jitter((70, 150, 70), rng, 26), 0.75)
    return image


def _city(rng: Rng) -> Array:
    sky: Stops = [(0, _jitter((140, 190, 236), rng)), (0.7, _jitter((244, 226, 206), rng, 8))]
    image = _gradient([*sky, (1, _jitter((210, 204, 200), rng))])
    x = -rng.uniform(0, 0.1)
    while x < 1:
        width, top = rng.uniform(0.1, 0.2), rng.uniform(0.08, 0.42)
        house = (
            np.clip((width / 2 - np.abs(_x() - x - width / 2)) * _CANVAS / 2 + 0.5, 0, 1) * (_y() > top) * (_y() < 0.76)
        )
        image = _over(image, house, _jitter((120, 130, 156), rng, 26))
        lit = ((_x() - x) % 0.045 > 0.018) * ((_y() - top) % 0.06 > 0.026) * (_x() < x + width - 0.02)
        image = _over(image, house * lit, _jitter((250, 222, 150), rng, 18))
        x += width + 0.008
    return _over(image, (_y() > 0.76).astype(np.float32), _jitter((108, 112, 122), rng))


def _desert(rng: Rng) -> Array:
    image = _gradient(
        [(0, _jitter((96, 180, 236), rng)), (0.5, _jitter((252, 226, 182), rng, 8)), (1, (240, 200, 130))]
    )
    image = _disc(image, (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.2)), 0.06, 0.03, (255, 244, 200))
    image = _over(image, _ridge(rng, 0.58, 0.16, 3), _jitter((232, 174, 104), rng))
    image = _over(image, _ridge(rng, 0.74, 0.14, 2), _jitter((222, 158, 86), rng))
    return _over(image, _ridge(rng, 0.92, 0.1, 2), _jitter((240, 184, 112), rng))


def _night(rng: Rng) -> Array:
    sky: Stops = [(0, _jitter((14, 18, 52), rng, 6)), (0.7, _jitter((54, 52, 116), rng, 8))]
    image = _gradient([*sky, (1, _jitter((30, 34, 70), rng, 6))])
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.22)
    image = image + 0.25 * np.exp(-((_x() - x) ** 2 + (_y() - y) ** 2) / 0.03)[..., None]
    image = _disc(image, (x, y), 0.065, 0.012, (255, 246, 214))
    image = _dots(image, rng, 26, (0.005, 0.011), (255, 250, 235), bottom=0.65)
    return _over(image, _ridge(rng, 0.82, 0.12, 4), _jitter((24, 34, 58), rng, 6))


def _ocean(rng: Rng) -> Array:
    deep: Stops = [(0.5, _jitter((26, 126, 200), rng)), (1, _jitter((12, 60, 130), rng))]
    image = _gradient([(0, _jitter((84, 200, 236), rng)), *deep])
    for _ in range(4):
        x, slant = rng.uniform(0, 1), rng.uniform(-0.5, 0.5)
        image = image + 0.12 * (np.clip(1 - np.abs(_x() - x - slant * _y()) / 0.1, 0, 1) * (1 - _y()))[..., None]
    for _ in range(12):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.01, 0.028)
        image = _disc(image, (x, y), radius, 0.01, (230, 250, 255), 0.35)
        image = _disc(image, (x - radius * 0.3, y - radius * 0.3), radius * 0.35, 0.008, (255, 255, 255), 0.8)
    return image


def _mountains(rng: Rng) -> Array:
    image = _gradient(
        [(0, _jitter((110, 176, 236), rng)), (0.6, _jitter((236, 232, 232), rng, 6)), (1, (150, 200, 120))]
    )
    peaks = _ridge(rng, 0.58, 0.46, 5)
    image = _over(image, peaks, _jitter((128, 142, 176), rng))
    image = _over(image, peaks * np.clip((0.30 - _y()) * 20, 0, 1), (248, 250, 252))
    image = _over(image, _ridge(rng, 0.68, 0.18, 5), _jitter((86, 128, 120), rng))
    return _over(image, _ridge(rng, 0.84, 0.1, 3), _jitter((120, 176, 92), rng))


def _brick(rng: Rng) -> Array:
    tone = _jitter((186, 98, 76), rng, 16)
    image = _gradient([(0, (222, 206, 192)), (1, (204, 188, 176))])
    height = 1 / rng.uniform(6.5, 8)
    row = np.floor(_y() / height)
    along = _x() / (height * 2.2) + 0.5 * (row % 2)
    column = np.floor(along)
    across = np.minimum(along - column, 1 - along + column) * 2.2
    edge = np.minimum(across, np.minimum(_y() / height - row, 1 - _y() / height + row))
    shade = (np.sin(row * 12.9 + column * 78.2) * 43758.5) % 1  # one tone a brick
    brick = np.clip((edge - 0.06) * 18, 0, 1)
    image = _over(image, brick, tone) * (1 - 0.16 * (shade - 0.5) * brick)[..., None]
    return _over(image, _below(rng.uniform(0.78, 0.86), 80), _jitter((150, 140, 136), rng))


def _wood(rng: Rng) -> Array:
    wall = rng.uniform(0.3, 0.42)
    image = _gradient(
        [(0, _jitter((238, 230, 216), rng, 8)), (wall, _jitter((222, 210, 192), rng, 8)), (1, (222, 210, 192))]
    )
    along = (_x() - 0.5) / (np.maximum(_y() - wall, 0) + 0.35) * 3.2
    plank = np.floor(along)
    shade = (np.sin(plank * 37.7) * 43758.5) % 1
    edge = np.minimum(along - plank, 1 - along + plank)
    floor = _below(wall)
    image = _over(image, floor, _jitter((198, 142, 88), rng, 14))
    image = image * (1 - floor * (0.22 * (shade - 0.5) + 0.28 * np.clip(1 - edge * 16, 0, 1)))[..., None]
    return _over(image, np.clip((0.012 - np.abs(_y() - wall + 0.012)) * _CANVAS, 0, 1), (252, 250, 246))


def _garden(rng: Rng) -> Array:
    horizon = rng.uniform(0.3, 0.42)
    sky: Stops = [(0, _jitter((120, 194, 246), rng)), (horizon, _jitter((220, 240, 250), rng, 6))]
    image = _gradient([*sky, (horizon + 0.01, _jitter((150, 212, 104), rng)), (1, _jitter((84, 160, 60), rng))])
    kinds = [(252, 92, 124), (255, 216, 80), (252, 252, 252), (200, 120, 240), (255, 150, 70)]
    for _ in range(34):
        y = horizon + 0.04 + (1 - horizon) * rng.uniform(0, 1) ** 0.8
        x, radius = rng.uniform(0, 1), 0.008 + 0.03 * (y - horizon)
        image = _disc(image, (x, y), radius, 0.012, kinds[int(rng.integers(5))])
        image = _disc(image, (x, y), radius * 0.35, 0.01, (255, 236, 150))
    return image


def _studio(rng: Rng) -> Array:
    return _gradient([(0, (250, 250, 250)), (1, (250, 250, 250))])


def _blocks(rng: Rng) -> Array:
    """Return the default scene of "in Minecraft": sky with clouds, grass and earth."""
    side = _CANVAS // NUM_BLOCKS
    image = np.empty((NUM_BLOCKS, NUM_BLOCKS, 3), np.float32)
    horizon = int(rng.integers(3, 6))
    image[:horizon] = _jitter((124, 176, 250), rng, 10)
    for x, y in zip(rng.integers(0, NUM_BLOCKS - 1, 2), rng.integers(0, 3, 2), strict=True):
        image[y, x : x + 2] = (244, 248, 255)
    for row in range(horizon, NUM_BLOCKS):
        for column in range(NUM_BLOCKS):
            image[row, column] = _jitter((104, 172, 72) if row == horizon else (134, 96, 66), rng, 12)
    return (image / 255).repeat(side, 0).repeat(side, 1)


_SCENES: dict[str, Callable[[Rng], Array]] = {
    "beach": _beach, "snow": _snow, "forest": _forest, "city": _city, "desert": _desert, "night": _night,
    "ocean": _ocean, "mountains": _mountains, "brick": _brick, "wood": _wood, "garden": _garden,
    "studio": _studio, "blocks": _blocks,
}  # fmt: skip

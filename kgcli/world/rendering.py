"""The pure function from a `Spec` to its image and ground truth, and the contrast check of its subjects."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from kgcli.world import oklab, scenes, styles, subjects
from kgcli.world.bank import CELL
from kgcli.world.oklab import Array
from kgcli.world.spec import Placed, Spec
from kgcli.world.tables import SIZE

MIN_CONTRAST = 0.12  # OKLab distance between a body and what is behind it
_GROUND = 16  # cells across and down in which a background's colours are averaged
_INKED = 40  # of 255: less opaque pixels do not count for a subject's box

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Rendered:
    """An image with its ground truth: for each subject a mask in [0, 255] and its box."""

    image: Image.Image
    masks: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]


def render(spec: Spec, size: int = SIZE) -> Rendered:
    """Render `spec` at SIZE x SIZE pixels; for another `size` the image and its masks are resized."""
    layers = [_layer(placed) for placed in spec.subjects]
    image = _resized(_composed(spec, layers), size)
    masks = tuple(_resized(layer.getchannel("A"), size) for layer in layers)
    return Rendered(image, masks, tuple(_box(mask) for mask in masks))


def stylize(image: Image.Image, style: str) -> Image.Image:
    """Return a finished render, a square image, in `style`; "photo" changes nothing.

    Styles are of SIZE x SIZE pixels: an image of another size is resized to them and back.
    """
    assert image.width == image.height, f"a render is square, not {image.width} x {image.height}"
    image = image.convert("RGB")
    if style == "photo":
        return image
    pixels = np.asarray(_resized(image, SIZE), np.float32) / 255
    return _resized(_finished(pixels, style), image.width)


def crop(rendered: Rendered, index: int, size: int, *, keep_background: bool) -> Image.Image:
    """Return the square around one subject, with its background or on white, as a reference image."""
    image = rendered.image
    if not keep_background:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), rendered.masks[index])
    left, top, right, bottom = rendered.boxes[index]
    side = max(right - left, bottom - top) + 2
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    if keep_background:  # stay inside the image
        side = min(side, image.width)
        x, y = min(max(x, 0), image.width - side), min(max(y, 0), image.height - side)
        return image.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, (-x, -y))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def stands_out(spec: Spec) -> bool:
    """Return True if every colour of every body differs enough from the background behind it."""
    ground = _ground(spec.scene or "blocks", spec.variant % scenes.NUM_VIEWS)
    for placed in spec.subjects:
        rows, columns = (
            slice(max(0, int((at - placed.side / 2) * _GROUND)), int(np.ceil((at + placed.side / 2) * _GROUND)))
            for at in (placed.y, placed.x)
        )
        behind = ground[rows, columns].mean((0, 1))
        look = placed.subject.look
        for colour in (look.colour, look.second):
            if colour is not None:
                distance = float(np.linalg.norm(subjects.tone(placed.subject.noun, colour) - behind))
                if distance < MIN_CONTRAST:
                    return False
    return True


def _composed(spec: Spec, layers: Sequence[Image.Image]) -> Image.Image:
    """Return the scene with its subjects and their shadows, in the style: SIZE x SIZE pixels."""
    image = scenes.background(spec.scene or "blocks", spec.variant)
    if spec.style == "minecraft":  # large blocks for the scene, small ones for the subject, which has to stay itself
        image = styles.in_blocks(image)
    alphas = [np.asarray(layer.getchannel("A"), np.float32) / 255 for layer in layers]
    for layer, alpha in zip(layers, alphas, strict=True):
        image = image * _shade(layer, alpha)[..., None]
    for layer, alpha in zip(layers, alphas, strict=True):
        image = image + alpha[..., None] * (np.asarray(layer, np.float32)[..., :3] / 255 - image)
    return _finished(image, spec.style)


def _resized(image: Image.Image, size: int) -> Image.Image:
    return image if image.width == size else image.resize((size, size), Image.Resampling.BICUBIC)


def _finished(image: Array, style: str) -> Image.Image:
    return Image.fromarray((styles.stylize(image, style) * 255 + 0.5).astype(np.uint8))


@functools.lru_cache(maxsize=2048)
def _ground(scene: str, variant: int) -> Array:
    cell = SIZE // _GROUND
    image = scenes.background(scene, variant).reshape(_GROUND, cell, _GROUND, cell, 3).mean((1, 3))
    return oklab.from_rgb(image)


def _layer(placed: Placed) -> Image.Image:
    """Return the subject alone on a transparent image, SIZE x SIZE pixels."""
    look = placed.subject.look
    body = subjects.body(placed.subject.noun, look, placed.subject.accessory)
    if placed.flip:
        body = body.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = placed.side * SIZE / CELL  # pixels of the image for one of the sprite
    wide, high = side * min(look.stretch, 1.0), side * min(1 / look.stretch, 1.0)
    body = body.resize((round(body.width * wide), round(body.height * high)), Image.Resampling.BICUBIC)
    cos, sin = np.cos(np.deg2rad(placed.tilt)), np.sin(np.deg2rad(placed.tilt))
    x, y = placed.x * SIZE, placed.y * SIZE
    places = (cos, sin, body.width / 2 - cos * x - sin * y, -sin, cos, body.height / 2 + sin * x - cos * y)
    return body.transform((SIZE, SIZE), Image.Transform.AFFINE, places, Image.Resampling.BICUBIC)


def _shade(layer: Image.Image, alpha: Array) -> Array:
    """Return the light that a subject leaves on the scene: a contact shadow under it and a soft one beside it."""
    left, _, right, bottom = _box(layer.getchannel("A"))
    y, x = np.arange(SIZE, dtype=np.float32)[:, None], np.arange(SIZE, dtype=np.float32)[None]
    oval = ((x - (left + right) / 2) / ((right - left) * 0.46)) ** 2 + ((y - bottom + 1) / (SIZE * 0.045)) ** 2
    near = layer.getchannel("A").filter(ImageFilter.GaussianBlur(5))
    soft = np.roll(np.asarray(near, np.float32) / 255, (3, 1), (0, 1))
    return (1 - 0.42 * np.exp(-(oval**1.2))) * (1 - 0.22 * soft)


def _box(mask: Image.Image) -> Box:
    inked = np.asarray(mask) > _INKED
    columns, rows = (np.flatnonzero(inked.any(axis)) for axis in (0, 1))
    if not len(columns):
        return (0, 0, *mask.size)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

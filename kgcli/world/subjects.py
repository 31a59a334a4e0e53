"""One subject's pixels: a sprite tinted in OKLab, with a shaded pattern and an accessory."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from kgcli.world import oklab
from kgcli.world.bank import CELL, sprite
from kgcli.world.looks import Look
from kgcli.world.oklab import Array

MARGIN = 36  # pixels round a body, where a hat may stand out
PATTERN_OPACITY = 0.9
KEPT_CHROMA = 0.14  # of the sprite's own colours, which keeps leaves, tongues and windows apart from the body
LIGHTNESS_FRACTION = 0.7  # of the colour, the rest is the sprite's own
# Accessory -> (width, x, y, anchor): width and place in units of the body's box, y counted from `anchor`.
WORN = {
    "hat": (0.56, 0.5, -0.16, "top"),
    "crown": (0.54, 0.5, -0.13, "top"),
    "sunglasses": (0.62, 0.5, 0.40, "box"),
    "scarf": (0.56, 0.5, 0.84, "box"),
}


@functools.lru_cache(maxsize=512)
def body(noun: str, look: Look, accessory: str | None = None) -> Image.Image:
    """Return one instance, RGBA, CELL + 2 * MARGIN pixels square; its body fills the inner CELL x CELL."""
    _, alpha, _ = _analysed(noun)
    pixels = _tinted(noun, look.colour)
    if look.second is not None:
        mask = pattern(look.pattern, np.random.default_rng(look.pattern_seed))
        pixels = pixels + PATTERN_OPACITY * mask[..., None] * (_tinted(noun, look.second) - pixels)
    layer = np.concatenate([pixels, alpha[..., None]], axis=-1)
    whole = Image.new("RGBA", (CELL + 2 * MARGIN, CELL + 2 * MARGIN))
    whole.paste(Image.fromarray((layer * 255 + 0.5).clip(0, 255).astype(np.uint8)), (MARGIN, MARGIN))
    if accessory is not None:
        _put_on(whole, alpha, accessory)
    return whole


def tone(noun: str, colour: tuple[float, float, float]) -> Array:
    """Return the OKLab colour of most of a body tinted in `colour`: (3,)."""
    _, _, level = _analysed(noun)
    target = oklab.from_rgb(np.array(colour, np.float32))
    return np.array([_body_lightness(level, float(target[0])), *(target[1:] * (1 - KEPT_CHROMA))], np.float32)


def pattern(kind: str, rng: np.random.Generator) -> Array:
    """Return the mask of the second colour: (CELL, CELL) in [0, 1]."""
    y, x = np.mgrid[0:CELL, 0:CELL].astype(np.float32) / CELL
    if kind == "stripes":
        angle, count = rng.uniform(-0.6, 0.6), rng.uniform(3.4, 5.0)
        along = x * np.sin(angle) + y * np.cos(angle) + 0.03 * np.sin(6 * x + rng.uniform(0, 6))
        return _soften(np.sin(2 * np.pi * (count * along + rng.uniform())), 3)
    if kind == "spots":
        step, shift = rng.uniform(0.19, 0.25), rng.uniform(0, 1, 2)
        row = np.floor(y / step + shift[0])
        u = (x / step + shift[1] + 0.5 * (row % 2)) % 1 - 0.5
        v = (y / step + shift[0]) % 1 - 0.5
        return _soften((rng.uniform(0.29, 0.34) - np.hypot(u, v)) * 3, 5)
    waves = sum(np.sin(2 * np.pi * (x * fx + y * fy) + p) for fx, fy, p in rng.uniform(-1.6, 1.6, (4, 3)) * (1, 1, 4))
    return _soften(np.asarray(waves) * 0.9 + 0.2, 2.5)


@functools.cache
def _analysed(noun: str) -> tuple[Array, Array, float]:
    """Return a sprite's OKLab colours (CELL, CELL, 3), its alpha (CELL, CELL), and the lightness of its body."""
    pixels = np.asarray(sprite(noun), np.float32) / 255
    lab, alpha = oklab.from_rgb(pixels[..., :3]), pixels[..., 3]
    return lab, alpha, float(np.clip(np.median(lab[alpha > 0.5][:, 0]), 0.35, 0.9))


def _tinted(noun: str, colour: tuple[float, float, float]) -> Array:
    """Return the sprite's pixels with its body in `colour`; eyes, teeth and shine survive: (CELL, CELL, 3)."""
    lab, _, level = _analysed(noun)
    target = oklab.from_rgb(np.array(colour, np.float32))
    wanted = _body_lightness(level, float(target[0]))
    lightness = lab[..., 0]
    retinted = np.interp(lightness, [0, level, 1], [0.02, wanted, 0.5 + 0.5 * max(wanted, 0.97)]).astype(np.float32)
    # Chroma fades towards black and white.
    above = np.clip((1 - lightness) / max(1 - level, 0.12), 0, 1) ** 0.6
    below = np.clip((lightness - 0.12) / 0.25, 0, 1)
    strength = np.where(lightness > level, above, 1) * below * np.minimum(retinted / max(wanted, 0.3), 1.15)
    chroma = (1 - KEPT_CHROMA) * target[1:] * strength[..., None] + KEPT_CHROMA * lab[..., 1:]
    return oklab.to_rgb(np.concatenate([retinted[..., None], chroma], axis=-1).astype(np.float32))


def _body_lightness(level: float, colour: float) -> float:
    """Return the lightness of a body: part of the way from its own lightness to the colour's."""
    return float(np.clip((1 - LIGHTNESS_FRACTION) * level + LIGHTNESS_FRACTION * colour, 0.30, 0.93))


def _put_on(whole: Image.Image, alpha: Array, accessory: str) -> None:
    """Paste an accessory where it is worn: hats on the ink in the middle, the rest by the body's box."""
    width, x, y, anchor = WORN[accessory]
    rows, columns = np.nonzero(alpha > 0.4)
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    middle = np.abs(columns - (left + right) / 2) < 0.16 * (right - left)
    start = rows[middle].min() if anchor == "top" and middle.any() else top
    side = round(width * (right - left) * (1 if anchor == "box" else 0.94))
    worn = sprite(accessory).resize((side, side), Image.Resampling.BICUBIC)
    centre = left + x * (right - left), start + y * (bottom - top)
    whole.alpha_composite(worn, (round(centre[0] - side / 2) + MARGIN, max(0, round(centre[1] - side / 2) + MARGIN)))


def _soften(values: Array, slope: float) -> Array:
    return np.clip(0.5 + values * slope, 0, 1).astype(np.float32)

"""One subject's pixels: the sprite bank, tint, pattern and geometry.

The bank is an image of glyphs cut from one pinned release of Noto Color Emoji (OFL 1.1, see `nano/sprites/OFL.txt`).
Rebuild it with `python -m kgcli.world.sprites FONT.ttf`; no font is needed otherwise.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kgcli.errors import MissingError
from kgcli.world.tables import COLOURS, GLYPHS

FONT_SHA256 = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"
CELL = 96  # pixels, square, one glyph of the bank
DRAWN = 64  # pixels, square, the size at which a subject is coloured: as large as it is ever shown
COLUMNS = 8
BANK = Path(__file__).parents[1] / "nano" / "sprites" / "bank.png"


def tinted(noun: str, colour: np.ndarray, pattern: np.ndarray | None, second: np.ndarray | None) -> Image.Image:
    """Give the glyph of `noun` a body colour and, under `pattern`, a second one.

    Shading survives: black stays black, white highlights stay light, the glyph's commonest luminance becomes `colour`.

    Shapes:
        colour, second: (3,) in [0, 1]; pattern: (DRAWN, DRAWN) in [0, 1]; returns RGBA of DRAWN x DRAWN pixels
    """
    level, alpha, original = _glyph(noun)
    body = _ramp(colour)[level]
    if pattern is not None and second is not None:
        body = body + (0.85 * pattern)[..., None] * (_ramp(second)[level] - body)
    # A trace of the glyph's own colours keeps leaves, tongues and windows apart from the body.
    body = 0.82 * body + 0.18 * original
    pixels = np.concatenate([body * 255.0, alpha], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")


def sprite(name: str) -> Image.Image:
    """Return the untouched glyph called `name`, RGBA, CELL x CELL pixels."""
    place = list(GLYPHS).index(name)
    x, y = place % COLUMNS * CELL, place // COLUMNS * CELL
    return _bank().crop((x, y, x + CELL, y + CELL))


def colour_near(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour around the one called `name`: (3,) in [0, 1]."""
    hue, saturation, value = COLOURS[name]
    hue += rng.uniform(-0.022, 0.022)
    saturation = float(np.clip(saturation + rng.uniform(-0.1, 0.1) * min(1.0, saturation * 2), 0.0, 1.0))
    value = float(np.clip(value + rng.uniform(-0.08, 0.05), 0.0, 1.0))
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def draw_pattern(kind: str, rng: np.random.Generator) -> np.ndarray | None:
    """Return the mask of the second colour: (DRAWN, DRAWN) in [0, 1], or None for a plain subject."""
    if kind == "plain":
        return None
    y, x = np.mgrid[0:DRAWN, 0:DRAWN].astype(np.float32) / DRAWN
    if kind == "stripes":
        angle, count = rng.uniform(-0.6, 0.6), rng.uniform(3.4, 5.0)
        along = x * np.sin(angle) + y * np.cos(angle)
        return _soften(np.sin(2 * np.pi * (count * along + rng.uniform())))
    if kind == "spots":
        step, shift = rng.uniform(0.19, 0.25), rng.uniform(0, 1, 2)
        row = np.floor(y / step + shift[0])
        u = (x / step + shift[1] + 0.5 * (row % 2)) % 1 - 0.5
        v = (y / step + shift[0]) % 1 - 0.5
        return _soften((rng.uniform(0.31, 0.36) - np.hypot(u, v)) * 6)
    waves = sum(np.sin(2 * np.pi * (x * fx + y * fy) + p) for fx, fy, p in rng.uniform(-1.6, 1.6, (4, 3)) * (1, 1, 4))
    return _soften(np.asarray(waves) * 0.9 + 0.2)


def build_bank(font_file: Path, out: Path) -> None:
    """Cut the bank from the pinned font.

    Raises:
        MissingError: the font is another release, so its glyphs would differ.
    """
    digest = hashlib.sha256(font_file.read_bytes()).hexdigest()
    if digest != FONT_SHA256:
        raise MissingError(f"{font_file.name} has sha256 {digest}; the sprites are cut from {FONT_SHA256}")
    font = ImageFont.truetype(str(font_file), 109)  # the one size of the font's bitmaps, in pixels
    rows = -(-len(GLYPHS) // COLUMNS)
    bank = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for place, glyph in enumerate(GLYPHS.values()):
        canvas = Image.new("RGBA", (180, 180))
        ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
        cut = canvas.crop(canvas.getbbox())
        scale = CELL / max(cut.size)
        cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)
        x = place % COLUMNS * CELL + (CELL - cut.width) // 2
        y = place // COLUMNS * CELL + (CELL - cut.height) // 2
        bank.paste(cut, (x, y))
    bank.save(out, optimize=True)


@functools.cache
def _bank() -> Image.Image:
    return Image.open(BANK).convert("RGBA")


@functools.cache
def _glyph(noun: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luminance level (DRAWN, DRAWN) in 0..255 with the body at 128, alpha (DRAWN, DRAWN, 1), colours in [0, 1]."""
    pixels = np.asarray(sprite(noun).resize((DRAWN, DRAWN), Image.Resampling.BOX), np.float32)
    colours, alpha = pixels[..., :3] / 255.0, pixels[..., 3:]
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    body = np.clip(np.median(luminance[alpha[..., 0] > 128]), 0.35, 0.82)
    # A white body has no room above it: leave some, or its highlights would turn into noise.
    level = np.interp(luminance, [0.0, body, max(1.0, body + 0.15)], [0.0, 128.0, 255.0])
    return level.astype(np.uint8), alpha, colours


def _ramp(colour: np.ndarray) -> np.ndarray:
    """Luminance level -> colour: (256, 3), black to `colour` to nearly white."""
    light = colour + (1.0 - colour) * 0.85
    levels = np.arange(256)
    return np.stack(
        [np.interp(levels, [0, 128, 255], [0.04, c, w]) for c, w in zip(colour, light, strict=True)], 1
    ).astype(np.float32)


def _soften(values: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + values * 2.2, 0.0, 1.0)


if __name__ == "__main__":
    BANK.parent.mkdir(parents=True, exist_ok=True)
    build_bank(Path(sys.argv[1]), BANK)

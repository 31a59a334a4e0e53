"""Backgrounds behind subjects, and styles of the whole image."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

NUM_VARIANTS = 192  # of each scene; rendered once per process, then cached
CANVAS = 128  # pixels, square; rendered at twice the size used, then reduced
NUM_BLOCKS = 8  # of a place in Minecraft, across and down
BLOCK_CONTRAST = 26.0  # of 255: largest difference of a block from the scene

Rng = np.random.Generator
Draw = ImageDraw.ImageDraw


@functools.lru_cache(maxsize=4096)
def background(scene: str, variant: int, size: int) -> Image.Image:
    """Return one of `NUM_VARIANTS` views of a scene, RGB, size x size pixels."""
    place = list(_SCENES).index(scene)
    rng = np.random.default_rng([7, place, variant % NUM_VARIANTS])
    image = Image.new("RGB", (CANVAS, CANVAS))
    _SCENES[scene](image, ImageDraw.Draw(image), rng)
    return image.resize((size, size), Image.Resampling.BOX)


def stylize(image: Image.Image, style: str) -> Image.Image:
    """Return a finished image in `style`; "photo" changes nothing."""
    return _STYLES[style](image)


def _jitter(colour: tuple[int, int, int], rng: Rng, by: int = 14) -> tuple[int, int, int]:
    shift = rng.integers(-by, by + 1) + rng.integers(-by // 2, by // 2 + 1, 3)
    red, green, blue = (int(v) for v in np.clip(np.array(colour) + shift, 0, 255))
    return red, green, blue


def _gradient(image: Image.Image, top: tuple[int, int, int], bottom: tuple[int, int, int], y0: int, y1: int) -> None:
    ramp = np.linspace(0, 1, max(y1 - y0, 1))[:, None, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    band = np.broadcast_to(rows, (max(y1 - y0, 1), CANVAS, 3)).astype(np.uint8)
    image.paste(Image.fromarray(np.ascontiguousarray(band)), (0, y0))


def _sky(image: Image.Image, rng: Rng, horizon: int) -> None:
    _gradient(image, _jitter((96, 168, 232), rng), _jitter((196, 226, 246), rng, 8), 0, horizon)


def _cloud(draw: Draw, rng: Rng, below: int) -> None:
    x, y = int(rng.integers(0, CANVAS)), int(rng.integers(6, below))
    for dx, dy, r in ((-10, 2, 7), (0, -2, 9), (11, 2, 7)):
        draw.ellipse((x + dx - r * 1.3, y + dy - r, x + dx + r * 1.3, y + dy + r), fill=(246, 249, 252))


def _beach(image: Image.Image, draw: Draw, rng: Rng) -> None:
    sea, shore = int(rng.integers(40, 56)), int(rng.integers(66, 84))
    _sky(image, rng, sea)
    _gradient(image, _jitter((28, 128, 190), rng), _jitter((70, 190, 206), rng), sea, shore)
    _gradient(image, _jitter((240, 220, 166), rng, 8), _jitter((222, 190, 128), rng, 8), shore, CANVAS)
    draw.ellipse((-20, shore - 5, CANVAS + 20, shore + 6), fill=(244, 246, 240))
    sun = int(rng.integers(10, 110))
    draw.ellipse((sun - 9, 8, sun + 9, 26), fill=(255, 236, 130))


def _snow(image: Image.Image, draw: Draw, rng: Rng) -> None:
    horizon = int(rng.integers(56, 76))
    _gradient(image, _jitter((158, 186, 214), rng), _jitter((208, 222, 236), rng, 8), 0, horizon)
    _gradient(image, _jitter((244, 248, 252), rng, 4), _jitter((206, 222, 240), rng, 8), horizon, CANVAS)
    for x in rng.integers(-6, CANVAS, 4):
        draw.polygon(
            [(x, horizon + 4), (x + 8, horizon - 26), (x + 16, horizon + 4)], fill=_jitter((92, 128, 128), rng)
        )
        draw.polygon([(x + 3, horizon - 12), (x + 8, horizon - 27), (x + 13, horizon - 12)], fill=(244, 248, 252))
    for x, y in rng.integers(0, CANVAS, (34, 2)):
        draw.ellipse((x, y, x + 3, y + 3), fill=(255, 255, 255))


def _forest(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _gradient(image, _jitter((66, 118, 62), rng), _jitter((112, 158, 82), rng), 0, 84)
    _gradient(image, _jitter((70, 96, 44), rng), _jitter((46, 68, 32), rng), 84, CANVAS)
    for x in np.sort(rng.integers(-4, CANVAS, 8)):
        w = int(rng.integers(5, 11))
        draw.rectangle((x, 0, x + w, 90 + int(rng.integers(0, 14))), fill=_jitter((80, 58, 38), rng))
    for x, y in rng.integers((-10, -14), (CANVAS, 26), (16, 2)):
        r = int(rng.integers(9, 18))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_jitter((40, 96, 44), rng, 18))


def _city(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _gradient(image, _jitter((150, 184, 214), rng), _jitter((226, 226, 222), rng, 8), 0, 100)
    x = -int(rng.integers(0, 12))
    while x < CANVAS:
        w, top = int(rng.integers(18, 32)), int(rng.integers(8, 56))
        draw.rectangle((x, top, x + w, 100), fill=_jitter((112, 118, 134), rng, 24))
        for wx in range(x + 4, x + w - 4, 7):
            for wy in range(top + 5, 96, 9):
                draw.rectangle((wx, wy, wx + 3, wy + 4), fill=(250, 224, 140) if rng.random() < 0.5 else (70, 78, 96))
        x += w + int(rng.integers(0, 4))
    draw.rectangle((0, 98, CANVAS, CANVAS), fill=_jitter((78, 80, 86), rng, 8))
    for x in range(int(rng.integers(-16, 0)), CANVAS, 26):
        draw.rectangle((x, 113, x + 13, 116), fill=(238, 236, 220))


def _desert(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _gradient(image, _jitter((244, 168, 96), rng), _jitter((252, 218, 150), rng, 8), 0, 80)
    for base, tone in ((64, (222, 150, 84)), (80, (204, 126, 62)), (98, (186, 106, 48))):
        phase, high = rng.uniform(0, 6), rng.uniform(5, 11)
        crest = [(x, base + high * np.sin(x / 24 + phase)) for x in range(0, CANVAS + 4, 4)]
        draw.polygon([*crest, (CANVAS, CANVAS), (0, CANVAS)], fill=_jitter(tone, rng, 10))
    sun = int(rng.integers(14, 114))
    draw.ellipse((sun - 12, 14, sun + 12, 38), fill=(255, 246, 206))


def _night(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _gradient(image, _jitter((8, 10, 34), rng, 6), _jitter((34, 34, 92), rng, 8), 0, CANVAS)
    for x, y in rng.integers(0, CANVAS, (46, 2)):
        r = int(rng.integers(1, 3))
        draw.ellipse((x, y, x + r, y + r), fill=_jitter((236, 236, 214), rng, 16))
    x, y = int(rng.integers(12, 112)), int(rng.integers(12, 24))
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=(246, 240, 200))
    draw.ellipse((x - 5, y - 13, x + 15, y + 8), fill=(12, 14, 42))
    draw.rectangle((0, 112, CANVAS, CANVAS), fill=_jitter((16, 22, 38), rng, 5))


def _ocean(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _gradient(image, _jitter((52, 168, 214), rng), _jitter((8, 52, 122), rng), 0, CANVAS)
    for x in rng.integers(0, CANVAS, 3):
        draw.polygon([(x, 0), (x + 10, 0), (x + 34, CANVAS), (x + 6, CANVAS)], fill=_jitter((74, 176, 216), rng, 8))
    _gradient(image, (20, 78, 140), (16, 56, 108), 116, CANVAS)
    for x, y in rng.integers(0, CANVAS, (18, 2)):
        r = int(rng.integers(2, 6))
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(196, 234, 246), width=1)
    for x in rng.integers(0, CANVAS, 7):
        draw.line([(x, 128), (x + 4, 112), (x - 2, 98)], fill=_jitter((28, 128, 84), rng), width=4)


def _mountains(image: Image.Image, draw: Draw, rng: Rng) -> None:
    _sky(image, rng, 96)
    for _ in range(2):
        _cloud(draw, rng, 24)
    for x in np.linspace(0, CANVAS, 4) + rng.integers(-12, 12, 4):
        h, w = int(rng.integers(46, 74)), int(rng.integers(30, 46))
        draw.polygon([(x - w, 98), (x, 98 - h), (x + w, 98)], fill=_jitter((108, 112, 134), rng))
        cap = 0.34
        peak = [(x - w * cap, 98 - h * (1 - cap)), (x, 98 - h), (x + w * cap, 98 - h * (1 - cap))]
        draw.polygon(peak, fill=(244, 246, 250))
    _gradient(image, _jitter((116, 168, 88), rng), _jitter((74, 128, 60), rng), 94, CANVAS)


def _brick(image: Image.Image, draw: Draw, rng: Rng) -> None:
    image.paste(_jitter((196, 184, 172), rng), (0, 0, CANVAS, CANVAS))
    high, wide, tone = int(rng.integers(11, 15)), int(rng.integers(24, 32)), _jitter((168, 76, 58), rng, 18)
    for row, y in enumerate(range(-int(rng.integers(0, high)), CANVAS, high)):
        for x in range(-(wide // 2) * (row % 2), CANVAS, wide):
            draw.rectangle((x + 1, y + 1, x + wide - 2, y + high - 2), fill=_jitter(tone, rng, 10))


def _wood(image: Image.Image, draw: Draw, rng: Rng) -> None:
    tone = _jitter((186, 132, 80), rng, 18)
    wall = int(rng.integers(26, 44))
    image.paste(_jitter((232, 222, 204), rng, 10), (0, 0, CANVAS, CANVAS))
    for x in range(-80, CANVAS + 80, int(rng.integers(15, 21))):
        fan = [(64 + (x - 64) * 0.6, wall), (64 + (x - 48) * 0.6, wall), (x * 1.7 - 20, CANVAS), (x * 1.7 - 45, CANVAS)]
        draw.polygon(fan, fill=_jitter(tone, rng, 16), outline=(112, 74, 42))
    draw.rectangle((0, wall - 5, CANVAS, wall), fill=(250, 246, 238))


def _garden(image: Image.Image, draw: Draw, rng: Rng) -> None:
    horizon = int(rng.integers(34, 50))
    _sky(image, rng, horizon)
    _gradient(image, _jitter((126, 200, 84), rng), _jitter((72, 152, 52), rng), horizon, CANVAS)
    kinds = [(250, 84, 110), (255, 214, 70), (250, 250, 250), (196, 110, 232)]
    for x, y in rng.integers((0, horizon), (CANVAS, CANVAS), (34, 2)):
        r = 2 + (y - horizon) / 34
        draw.ellipse((x - r, y - r, x + r, y + r), fill=kinds[int(rng.integers(0, 4))])


def _studio(image: Image.Image, draw: Draw, rng: Rng) -> None:
    image.paste((255, 255, 255), (0, 0, CANVAS, CANVAS))


def _blocks(image: Image.Image, draw: Draw, rng: Rng) -> None:
    """Render the default scene of "in Minecraft": sky, grass and earth."""
    side = CANVAS // NUM_BLOCKS
    horizon = side * int(rng.integers(3, 6))
    image.paste(_jitter((124, 176, 250), rng, 10), (0, 0, CANVAS, horizon))
    for x, y in zip(rng.integers(0, NUM_BLOCKS, 2) * side, rng.integers(0, 3, 2) * side, strict=True):
        draw.rectangle((x, y, x + 2 * side - 1, y + side - 1), fill=(244, 248, 255))
    for y in range(horizon, CANVAS, side):
        tone = (104, 172, 72) if y == horizon else (134, 96, 66)
        for x in range(0, CANVAS, side):
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_jitter(tone, rng, 12))


_SCENES: dict[str, Callable[[Image.Image, Draw, Rng], None]] = {
    "beach": _beach, "snow": _snow, "forest": _forest, "city": _city, "desert": _desert, "night": _night,
    "ocean": _ocean, "mountains": _mountains, "brick": _brick, "wood": _wood, "garden": _garden,
    "studio": _studio, "blocks": _blocks,
}  # fmt: skip


def in_blocks(image: Image.Image) -> Image.Image:
    """Return a scene in Minecraft style: `NUM_BLOCKS` blocks a side, each a tone lighter or darker than the scene.

    The tones are the same in every image. At 64 px a block is two latents wide, so that a VAE of factor 4 keeps it.
    """
    colours = np.asarray(image.resize((NUM_BLOCKS, NUM_BLOCKS), Image.Resampling.BOX), np.float32)
    blocks = (colours + BLOCK_CONTRAST * _tones()[..., None]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(blocks).resize(image.size, Image.Resampling.NEAREST)


@functools.cache
def _tones() -> np.ndarray:
    """Return a tone in [-1, 1] for each block, all different; row by row."""
    shuffled = np.random.default_rng(13).permutation(NUM_BLOCKS**2)
    return (shuffled / (NUM_BLOCKS**2 - 1) * 2 - 1).reshape(NUM_BLOCKS, NUM_BLOCKS).astype(np.float32)


def _minecraft(image: Image.Image) -> Image.Image:
    vivid, side = ImageEnhance.Color(image).enhance(1.2), image.width // 32
    small = vivid.resize((vivid.width // side, vivid.height // side), Image.Resampling.BOX)
    return ImageOps.posterize(small.resize(image.size, Image.Resampling.NEAREST), 4)


def _oil(image: Image.Image) -> Image.Image:
    strokes = ImageEnhance.Color(image.filter(ImageFilter.ModeFilter(3))).enhance(1.3)
    y, x = np.mgrid[0 : image.height, 0 : image.width] * 64 / image.width
    # Strokes of 8 to 9 pixels: finer ones do not survive a VAE of factor 4.
    relief = 17.0 * np.sin((x + 2.2 * np.sin(y * 0.2)) * 0.55 + y * 0.55)
    return Image.fromarray((np.asarray(strokes, np.float32) + relief[..., None]).clip(0, 255).astype(np.uint8))


def _watercolor(image: Image.Image) -> Image.Image:
    washed = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    y, x = np.mgrid[0 : image.height, 0 : image.width]
    # The wash fades towards an uneven edge of bare paper.
    edge = np.minimum(np.minimum(x, image.width - 1 - x), np.minimum(y, image.height - 1 - y)) / image.width
    wash = np.clip((edge * 11 + 0.55 * np.sin(x * 0.5) * np.sin(y * 0.43 + 1.0)), 0.0, 1.0)
    pixels = 255 - (255 - washed) * 0.74 * wash[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _comic(image: Image.Image) -> Image.Image:
    """Return flat, vivid colours between black lines along edges."""
    reach = 2 * round(image.width / 64) + 1
    flat = ImageEnhance.Color(image.filter(ImageFilter.ModeFilter(reach))).enhance(1.4)
    brightest, darkest = (image.filter(kind(reach)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    contrast = np.asarray(brightest.convert("L"), np.float32) - np.asarray(darkest.convert("L"), np.float32)
    line = np.clip((contrast - 50) / 50, 0.0, 1.0)[..., None]
    return Image.fromarray((np.asarray(flat, np.float32) * (1 - line)).clip(0, 255).astype(np.uint8))


_STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "photo": lambda image: image,
    "minecraft": _minecraft,
    "oil": _oil,
    "watercolor": _watercolor,
    "comic": _comic,
}

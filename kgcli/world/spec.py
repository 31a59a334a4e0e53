"""An image as data, and the pure function that renders it.

All ground truth of an image (captions, crops, masks, edits) comes from its `Spec`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from kgcli.world import scenes, sprites
from kgcli.world.tables import (
    ACCESSORIES,
    COLOURS,
    FIRST_NEW_IDENTITY,
    PATTERNS,
    SCENES,
    STYLES,
    is_held_out_combination,
)

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
FLUENT_SIZE = 128  # pixels, square: images of this size are rendered by `kgcli.world.fluent`


@dataclass(frozen=True)
class Subject:
    """One instance: a noun and an integer that determines its appearance."""

    noun: str
    identity: int
    accessory: str | None = None
    recoloured: str | None = None  # a colour word that replaces the body colour: the result of an edit

    @property
    def look(self) -> Look:
        """Return its colours, pattern and proportions: a function of `noun`, `identity` and `recoloured` alone."""
        return _look(self.noun, self.identity, self.recoloured)


@dataclass(frozen=True)
class Look:
    """The appearance of an instance: visible in its image, only partly in words."""

    colour_name: str
    colour: tuple[float, float, float]  # RGB in [0, 1]
    pattern: str
    second_name: str | None
    second: tuple[float, float, float] | None
    pattern_seed: int
    stretch: float  # width over height, relative to the glyph's own


@dataclass(frozen=True)
class Placed:
    """A subject at its place: centre and side of its box in units of the image, tilt in degrees."""

    subject: Subject
    x: float
    y: float
    side: float
    tilt: float
    flip: bool


@dataclass(frozen=True)
class Spec:
    """A whole image. `scene` None (only with a style that has a scene of its own) leaves the scene to the style."""

    subjects: tuple[Placed, ...]
    scene: str | None
    style: str = "photo"
    variant: int = 0


@dataclass(frozen=True)
class Rendered:
    """An image with its ground truth: for each subject a mask in [0, 255] and its box."""

    image: Image.Image
    masks: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]


@functools.lru_cache(maxsize=65536)
def _look(noun: str, identity: int, recoloured: str | None) -> Look:
    rng = np.random.default_rng([11, identity, sum(map(ord, noun))])
    first, second = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    pattern = str(rng.choice(list(PATTERNS), p=[0.46, 0.18, 0.18, 0.18]))
    stretch, pattern_seed = float(rng.uniform(0.86, 1.16)), int(rng.integers(1 << 30))
    colour, other = sprites.colour_near(first, rng), sprites.colour_near(second, rng)
    if recoloured is not None:
        first, colour = recoloured, sprites.colour_near(recoloured, rng)
    if np.abs(colour - other).sum() < 0.45:  # a pattern nobody could see
        pattern = "plain"
    plain = pattern == "plain"
    as_rgb = lambda values: (float(values[0]), float(values[1]), float(values[2]))  # noqa: E731
    return Look(
        first,
        as_rgb(colour),
        pattern,
        None if plain else second,
        None if plain else as_rgb(other),
        pattern_seed,
        stretch,
    )


def draw_subject(rng: np.random.Generator, nouns: list[str], *, new: bool = False, accessory: float = 0.15) -> Subject:
    """Return a random instance of one of `nouns`; `new` draws from the identities no training stage sees."""
    low = FIRST_NEW_IDENTITY if new else 0
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < accessory else None
    return Subject(str(rng.choice(nouns)), int(rng.integers(low, low + FIRST_NEW_IDENTITY)), worn)


def place(subjects: list[Subject], rng: np.random.Generator) -> tuple[Placed, ...]:
    """Put one subject in the middle or two or three side by side, the first on the left."""
    centres = {1: [0.5], 2: [0.26, 0.74], 3: [0.18, 0.5, 0.82]}[len(subjects)]
    low, high = {1: (0.70, 0.86), 2: (0.47, 0.54), 3: (0.33, 0.38)}[len(subjects)]
    return tuple(
        Placed(
            subject,
            x=centre + float(rng.uniform(-0.05, 0.05)) / len(subjects),
            y=float(rng.uniform(0.5, 0.57)) + (0.04 if subject.accessory in ("hat", "crown") else 0.0),
            side=float(rng.uniform(low, high)),
            tilt=float(rng.uniform(-5, 5)),
            flip=bool(rng.random() < 0.5),
        )
        for subject, centre in zip(subjects, centres, strict=True)
    )


def draw_spec(
    rng: np.random.Generator,
    nouns: list[str],
    *,
    num_subjects: int = 1,
    new: bool = False,
    accessory: float = 0.15,
    styled: float = 0.3,
    held_out: bool = False,
) -> Spec:
    """Return a random spec. Held-out combinations are excluded, or with `held_out` the only ones drawn.

    Args:
        styled: probability of a style other than "photo"
    """
    while True:
        subjects = [draw_subject(rng, nouns, new=new, accessory=accessory) for _ in range(num_subjects)]
        style = str(rng.choice(list(STYLES)[1:])) if rng.random() < styled else "photo"
        scene: str | None = str(rng.choice(list(SCENES)))
        if style == "minecraft" and rng.random() < 0.4:
            scene = None
        spec = Spec(place(subjects, rng), scene, style, int(rng.integers(scenes.NUM_VARIANTS)))
        if is_held_out(spec) == held_out:
            return spec


def is_held_out(spec: Spec) -> bool:
    """Return True if a subject is in a combination of noun, scene and style that no stage is shown."""
    return any(is_held_out_combination(p.subject.noun, spec.scene or "studio", spec.style) for p in spec.subjects)


def render(spec: Spec, size: int = 64) -> Rendered:
    """Render `spec` at size x size pixels; at FLUENT_SIZE by the second renderer, else by the first."""
    if size == FLUENT_SIZE:
        from kgcli.world.fluent.render import render as render_fluent

        return Rendered(*render_fluent(spec))
    image = scenes.background(spec.scene or "blocks", spec.variant, size).copy()
    if spec.style == "minecraft":  # the scene in large blocks, the subject in small ones, which keep its identity
        image = scenes.in_blocks(image)
    masks, boxes = [], []
    for placed in spec.subjects:
        layer, box = _layer(placed, size)
        alpha = layer.getchannel("A")
        # A soft dark rim, so that white on snow and blue on the ocean still have an outline.
        rim = alpha.filter(ImageFilter.GaussianBlur(size / 48)).point(lambda a: int(a * 0.55))
        image.paste((28, 26, 34), (0, 0), rim)
        image.paste(layer, (0, 0), alpha)
        masks.append(alpha)
        boxes.append(box)
    return Rendered(scenes.stylize(image, spec.style), tuple(masks), tuple(boxes))


def stylize(image: Image.Image, style: str) -> Image.Image:
    """Return a finished render in `style`, by the renderer of its size; "photo" changes nothing."""
    if image.width == FLUENT_SIZE:
        from kgcli.world.fluent.render import stylize as stylize_fluent

        return stylize_fluent(image, style)
    return scenes.stylize(image, style)


def stands_out(spec: Spec, size: int = 64) -> bool:
    """Return True if each body differs from the scene behind it; always True at other sizes, which add a rim."""
    if size != FLUENT_SIZE:
        return True
    from kgcli.world.fluent.render import stands_out as stands_out_fluent

    return stands_out_fluent(spec)


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


def _layer(placed: Placed, size: int) -> tuple[Image.Image, Box]:
    """Return the subject alone on a transparent image, and its box in pixels."""
    look = placed.subject.look
    body = _body(placed.subject.noun, look)
    if placed.flip:
        body = body.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = placed.side * size
    wide, high = side * min(look.stretch, 1.0), side * min(1 / look.stretch, 1.0)
    left, top = placed.x * size - wide / 2, placed.y * size - high / 2
    layer = _paste(size, body, left, top, wide, high, placed.tilt)
    box = layer.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox() or (0, 0, size, size)
    if placed.subject.accessory:
        _, scale, (x, y) = ACCESSORIES[placed.subject.accessory]
        worn, ink = sprites.sprite(placed.subject.accessory), box
        w = scale * min(ink[2] - ink[0], side * 0.9)
        cx, cy = ink[0] + x * (ink[2] - ink[0]), ink[1] + y * (ink[3] - ink[1])
        layer.alpha_composite(_paste(size, worn, cx - w / 2, cy - w / 2, w, w, placed.tilt))
        box = layer.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox() or box
    return layer, box


def _paste(size: int, body: Image.Image, left: float, top: float, wide: float, high: float, tilt: float) -> Image.Image:
    turned = body.rotate(tilt, Image.Resampling.BILINEAR) if tilt else body
    small = turned.resize((max(round(wide), 1), max(round(high), 1)), Image.Resampling.BOX)
    layer = Image.new("RGBA", (size, size))
    layer.paste(small, (round(left), round(top)))
    return layer


@functools.lru_cache(maxsize=512)
def _body(noun: str, look: Look) -> Image.Image:
    pattern = sprites.draw_pattern(look.pattern, np.random.default_rng(look.pattern_seed))
    second = None if look.second is None else np.array(look.second)
    return sprites.tinted(noun, np.array(look.colour), pattern, second)

"""The appearance of instances: a pure function from a noun and an integer to colours, pattern and proportions."""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import numpy as np

from kgcli.world.tables import COLOURS, PATTERNS

Rgb = tuple[float, float, float]  # in [0, 1]
_COOLEST = 0.58  # hue, as a fraction of the circle: from it both ways towards orange, colours get warmer
_COLOURLESS = 0.1  # saturation below which nobody sees a change of hue
# How far colours are drawn from the centre of their word, least and most, in hue, saturation and value.
_SPREAD = ((-0.022, 0.022), (-0.1, 0.1), (-0.08, 0.05))
_STRETCH = (0.86, 1.16)


@dataclass(frozen=True)
class Look:
    """The appearance of an instance: visible in its image, only partly in words."""

    colour_name: str
    colour: Rgb
    pattern: str
    second_name: str | None
    second: Rgb | None
    pattern_seed: int
    stretch: float  # width over height, relative to the sprite's own


@functools.lru_cache(maxsize=65536)
def look_of(noun: str, identity: int, recoloured: str | None = None) -> Look:
    """Return the look of an instance; `recoloured` is a colour word that replaces its body's."""
    rng, first, second = _colours(noun, identity)
    pattern = str(rng.choice(list(PATTERNS), p=[0.46, 0.18, 0.18, 0.18]))
    stretch, pattern_seed = float(rng.uniform(*_STRETCH)), int(rng.integers(1 << 30))
    colour, other = colour_near(first, rng), colour_near(second, rng)
    if recoloured is not None:
        first, colour = recoloured, colour_near(recoloured, rng)
    if np.abs(np.subtract(colour, other)).sum() < 0.45:  # a pattern nobody could see
        pattern = "plain"
    plain = pattern == "plain"
    return Look(first, colour, pattern, None if plain else second, None if plain else other, pattern_seed, stretch)


def colours_of(noun: str, identity: int) -> tuple[str, str]:
    """Return the colour words of an instance's body and of its pattern, which it may lack: cheaper than its look."""
    _, first, second = _colours(noun, identity)
    return first, second


def _colours(noun: str, identity: int) -> tuple[np.random.Generator, str, str]:
    rng = np.random.default_rng([11, identity, sum(map(ord, noun))])
    first, second = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    return rng, first, second


def colour_near(name: str, rng: np.random.Generator) -> Rgb:
    """Return a random colour around the one called `name`."""
    hue, saturation, value = COLOURS[name]
    hue += rng.uniform(*_SPREAD[0])
    saturation = float(np.clip(saturation + rng.uniform(*_SPREAD[1]) * min(1.0, saturation * 2), 0.0, 1.0))
    value = float(np.clip(value + rng.uniform(*_SPREAD[2]), 0.0, 1.0))
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def shade_of(name: str, colour: Rgb) -> list[str]:
    """Return the words that tell a colour from the others of its name: none in the middle third of their range.

    Example:
        >>> shade_of("red", (0.92, 0.09, 0.16))
        ['bright', 'vivid', 'cool']
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    centre = COLOURS[name]
    words = [_third(value - centre[2], _SPREAD[2], ("dark", "", "bright"))]
    if centre[1] > _COLOURLESS:
        words.append(_third(saturation - centre[1], _SPREAD[1], ("dull", "", "vivid")))
        turn = (hue - centre[0] + 0.5) % 1 - 0.5
        warmer = -1 if _COOLEST - 0.5 < centre[0] < _COOLEST else 1
        words.append(_third(turn * warmer, _SPREAD[0], ("cool", "", "warm")))
    return [word for word in words if word]


def shape_of(look: Look) -> list[str]:
    """Return the word for the proportions of an instance; none in the middle third of their range."""
    word = _third(look.stretch, _STRETCH, ("tall", "", "wide"))
    return [word] if word else []


def _third(value: float, spread: tuple[float, float], words: tuple[str, str, str]) -> str:
    """Return the word for the third of a range that a value is in."""
    return words[int(np.clip(3 * (value - spread[0]) / (spread[1] - spread[0]), 0, 2))]

"""The appearance of instances: a pure function from a noun and an integer to colours, pattern and proportions."""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import numpy as np

from kgcli.world.tables import COLOURS, PATTERNS

Rgb = tuple[float, float, float]  # in [0, 1]


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
    stretch, pattern_seed = float(rng.uniform(0.86, 1.16)), int(rng.integers(1 << 30))
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
    hue += rng.uniform(-0.022, 0.022)
    saturation = float(np.clip(saturation + rng.uniform(-0.1, 0.1) * min(1.0, saturation * 2), 0.0, 1.0))
    value = float(np.clip(value + rng.uniform(-0.08, 0.05), 0.0, 1.0))
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)

"""sRGB to OKLab and back, for arrays (..., 3) in [0, 1].

Source: Bjoern Ottosson, "A perceptual color space for image processing" (2020), https://bottosson.github.io/posts/oklab
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # single precision, but for sums on the way

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_CONES_OF = _TO_CONES.T.astype(np.float32)
_LAB_OF = _TO_LAB.T.astype(np.float32)
_LINEAR_OF = np.linalg.inv(_TO_CONES).T.astype(np.float32)
_ROOTS_OF = np.linalg.inv(_TO_LAB).T.astype(np.float32)
_LEVELS = 4095  # of the table that replaces the power function of the sRGB curve


def from_rgb(rgb: Array) -> Array:
    """Return lightness L in [0, 1] and the two colour axes a, b of sRGB colours."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return np.cbrt(np.maximum(linear @ _CONES_OF, 0)) @ _LAB_OF


def to_rgb(lab: Array) -> Array:
    """Return sRGB colours in [0, 1]; what the screen cannot show is clipped."""
    roots = lab @ _ROOTS_OF
    linear = np.clip((roots * roots * roots) @ _LINEAR_OF, 0, 1)
    return _CURVE[(np.sqrt(linear) * _LEVELS + 0.5).astype(np.int16)]


def _curve() -> Array:
    """Return sRGB values by the square root of linear light, which is nearly straight."""
    linear = (np.arange(_LEVELS + 1) / _LEVELS) ** 2
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


_CURVE = _curve()

"""From the mask of an entity to its images: the largest region, a square around it, the same on white.

Source: the released data script of KOSMOS-G (arXiv:2310.02992).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kgcli.construction.stage import Cut

DILATION = 100  # a mask grows by the image's height over this, pixels
WHITE = 255


def cut_out(image: Image.Image, mask: NDArray[np.bool_], size: int) -> Cut | None:
    """Return the images of the entity that a mask marks, size x size pixels; None for an empty mask.

    Shapes:
        mask: (H, W) of the image, True for the entity
    """
    if not mask.any():
        return None
    grown = _dilated(mask, image.height // DILATION)
    labels, _ = ndimage.label(grown)
    regions = ndimage.find_objects(labels)
    largest = int(np.argmax([grown[region].sum() for region in regions]))
    rows, columns = regions[largest]
    # No larger than the image, which the published code takes for granted: it cuts squares out of squares.
    side = min(max(rows.stop - rows.start, columns.stop - columns.start), *image.size)
    top = _fit((rows.start + rows.stop) // 2 - side // 2, side, image.height)
    left = _fit((columns.start + columns.stop) // 2 - side // 2, side, image.width)
    square = image.crop((left, top, left + side, top + side))
    inside = (labels == largest + 1)[top : top + side, left : left + side]
    pixels = np.array(square)
    pixels[~inside] = WHITE
    return Cut(square.resize((size, size)), Image.fromarray(pixels).resize((size, size)))


def _dilated(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    return mask if by < 2 else np.asarray(ndimage.grey_dilation(mask, size=(by, by)), bool)


def _fit(start: int, side: int, limit: int) -> int:
    """Move a stretch inside the image."""
    return min(max(start, 0), limit - side)

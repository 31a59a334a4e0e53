"""Thumbnails as data URIs, small enough for thousands in a page."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import ImageError
from kgcli.evaluation.report.page.templates import html

SIDES = ((400, 256), (1500, 176))  # maximum number of images: longest side in pixels
SMALLEST_SIDE = 128
QUALITY = 75  # of WebP
NOT_GIVEN = Path(os.devnull)  # placeholder of a folder that was not given: nothing is below it
UNREDUCED_QUALITY = 92  # small images are shown enlarged, where compression would be visible


def side_for(num_images: int) -> int:
    """Return the longest side of thumbnails, in pixels, for a page of `num_images` images."""
    return next((side for limit, side in SIDES if num_images <= limit), SMALLEST_SIDE)


@dataclass
class Thumbnails:
    """Thumbnails of one page; counts the files that could not be read, and those of a folder not given."""

    side: int
    num_missing: int = 0
    num_not_given: int = 0

    def image(self, path: Path, alt: str) -> Markup:
        """Return an <img> with the thumbnail, or a placeholder."""
        if path.is_relative_to(NOT_GIVEN):
            self.num_not_given += 1
            return html("absent", alt=alt, words="not shown", why="not shown")
        try:
            content, size = _encode(path, self.side)
        except ImageError:
            self.num_missing += 1
            return html("absent", alt=alt, words="no image", why="missing")
        source = "data:image/webp;base64," + base64.b64encode(content).decode()
        return html("image", source=source, alt=alt, width=size[0], height=size[1])


def _encode(path: Path, side: int) -> tuple[bytes, tuple[int, int]]:
    image = open_image(path)
    quality = QUALITY if max(image.size) > side else UNREDUCED_QUALITY
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue(), image.size

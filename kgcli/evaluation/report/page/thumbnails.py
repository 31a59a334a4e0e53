"""Pictures small enough to stand in a page by the thousand, as data URIs."""

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

SIDES = ((400, 256), (1500, 176))  # up to so many pictures: longest side in pixels
SMALLEST_SIDE = 128
QUALITY = 75  # of WebP
NOT_GIVEN = Path(os.devnull)  # in place of a folder that the user did not name: nothing is below it
UNREDUCED_QUALITY = 92  # small pictures are shown enlarged, where the coding would be seen


def side_for(num_pictures: int) -> int:
    """The longest side of thumbnails in a page of so many pictures, in pixels."""
    return next((side for limit, side in SIDES if num_pictures <= limit), SMALLEST_SIDE)


@dataclass
class Thumbnails:
    """Thumbnails of one page; counts the files that could not be read, and those of a folder not given."""

    side: int
    num_missing: int = 0
    num_not_given: int = 0

    def image(self, path: Path, alt: str) -> Markup:
        """An <img> that holds the picture, or a box that says it is not there."""
        if path.is_relative_to(NOT_GIVEN):
            self.num_not_given += 1
            return html("absent", alt=alt, words="not shown", why="not shown")
        try:
            content, size = _encode(path, self.side)
        except ImageError:
            self.num_missing += 1
            return html("absent", alt=alt, words="no picture", why="missing")
        source = "data:image/webp;base64," + base64.b64encode(content).decode()
        return html("image", source=source, alt=alt, width=size[0], height=size[1])


def _encode(path: Path, side: int) -> tuple[bytes, tuple[int, int]]:
    image = open_image(path)
    quality = QUALITY if max(image.size) > side else UNREDUCED_QUALITY
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue(), image.size

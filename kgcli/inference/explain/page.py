"""Overlays of an explanation as images, and all of them on one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kgcli.inference.explain.maps import Explanation, relative

COLOURS = ((230, 97, 1), (31, 120, 200), (27, 158, 80), (200, 40, 130), (120, 90, 200), (170, 130, 10))
WORD_COLOUR = (230, 97, 1)
SHOWN_SIDE = 256  # pixels; a smaller image is enlarged by a whole factor
PEAK = 99.0  # percentile of a map that gets the full colour
DARKEST = 70  # grey of black below the colour
STRENGTH = 0.75  # opacity of the full colour
THUMBNAIL = 96  # pixels
TEMPLATE = "page.html"


@dataclass(frozen=True)
class Overlay:
    """The map of one part over the image."""

    label: str
    share: float
    colour: tuple[int, int, int]
    image: Image.Image
    reference: Image.Image | None  # thumbnail of a reference


def overlays(explanation: Explanation) -> list[Overlay]:
    """Return one overlay per part: the image in grey, coloured where the part had an effect.

    The full colour is the peak of a reference's own map; of words it is that of the strongest word, so that a word
    without effect stays pale.
    """
    found = []
    words_MYX = explanation.maps_MYX[[part.image is None for part in explanation.parts]]
    word_peak = max((_peak(map_YX) for map_YX in words_MYX), default=1.0)
    for part, share, map_YX in zip(explanation.parts, explanation.shares, explanation.maps_MYX, strict=True):
        colour, peak, reference = WORD_COLOUR, word_peak, None
        if part.image is not None:
            colour, peak = COLOURS[(part.image - 1) % len(COLOURS)], _peak(map_YX)
            reference = ImageOps.contain(explanation.request.images[part.image - 1].load(), (THUMBNAIL, THUMBNAIL))
        image = overlay(explanation.image, map_YX, colour, peak)
        found.append(Overlay(part.label, share, colour, image, reference))
    return found


def overlay(image: Image.Image, map_YX: NDArray[np.float32], colour: tuple[int, int, int], peak: float) -> Image.Image:
    """Return an image in grey, tinted by a map, fully where it reaches `peak`; small images are enlarged."""
    opacity_YX1 = STRENGTH * (map_YX / peak).clip(0, 1)[..., None]
    return _tinted(image, np.asarray(colour, dtype=np.float32), opacity_YX1)


def region_image(explanation: Explanation) -> Image.Image:
    """Return the image tinted at every pixel by the colour of the reference that shaped it most."""
    maps_MYX = relative(explanation.maps_MYX[explanation.references])
    regions_YX = explanation.regions()
    strength_YX = maps_MYX.max(axis=0)
    opacity_YX1 = STRENGTH * (strength_YX / _peak(strength_YX)).clip(0, 1)[..., None]
    colours_M3 = np.asarray([COLOURS[index % len(COLOURS)] for index in range(len(maps_MYX))], dtype=np.float32)
    return _tinted(explanation.image, colours_M3[regions_YX - 1], opacity_YX1)


def to_html(explanation: Explanation, found: list[Overlay]) -> str:
    """Return the page: the image, the regions of the references, and every overlay."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    prompt = "".join(
        part if isinstance(part, str) else f"[{part.name}]" for part in explanation.request.prompt.parts
    ).strip()
    return environment.get_template(TEMPLATE).render(
        prompt=prompt,
        seed=explanation.request.seed,
        image=data_url(enlarged(explanation.image)),
        regions=data_url(region_image(explanation)) if len(explanation.references) > 1 else None,
        references=[one for one in found if one.reference is not None],
        words=[one for one in found if one.reference is None],
        data_url=data_url,
    )


def enlarged(image: Image.Image) -> Image.Image:
    """Return an image whose longer side is at least about SHOWN_SIDE, enlarged by a whole factor."""
    factor = max(1, SHOWN_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    """Return an image as PNG bytes; equal images give equal bytes."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    """Return an image as the text of a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def _peak(map_YX: NDArray[np.float32]) -> float:
    """Return the value of a map that gets the full colour, above 0."""
    return float(np.percentile(map_YX, PEAK)) or 1.0


def _tinted(image: Image.Image, colour: NDArray[np.float32], opacity_YX1: NDArray[np.floating[Any]]) -> Image.Image:
    """Return an image in light grey mixed with a colour (3) or an image of colours (Y, X, 3)."""
    grey_YX3 = DARKEST + (255 - DARKEST) / 255 * np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    mixed_YX3 = grey_YX3 * (1 - opacity_YX1) + colour * opacity_YX1
    return enlarged(Image.fromarray(mixed_YX3.round().clip(0, 255).astype(np.uint8)))

"""Colours of images that carry an ICC profile, as sRGB, which all models here were trained on."""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4 * 2**20  # bytes; profiles of printing inks have 2 MB
SAME = 2  # of 255: a profile that moves no colour further is one of the many sRGBs
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # colour space of a profile -> Pillow's mode
_GRID = 9  # steps of each channel at which a profile is looked at

_log = logging.getLogger(__name__)


def to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Return an image converted from its ICC profile to sRGB; alpha is kept.

    A profile that is damaged or of another mode than the pixels is ignored with a warning.
    """
    alpha = None
    if image.mode in ("P", "PA", "RGBA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    try:
        converted = _convert(image, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        _log.warning("the colour profile of %s is damaged: its pixels are taken as sRGB", name)
        converted = image
    if alpha is not None:
        converted = converted.convert("RGB")
        converted.putalpha(alpha)
    return converted


def _convert(image: Image.Image, content: bytes) -> Image.Image:
    if len(content) > MAX_PROFILE:
        raise ValueError("the profile is too large")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    mode = _SPACES.get(profile.profile.xcolor_space.strip())
    if mode is None or image.mode != mode:  # as a grey image with the profile of the colour image it was
        return image
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB" and _moves_nothing(transform):
        return image
    return ImageCms.applyTransform(image, transform) or image


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    seen = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return seen is not None and int(np.abs(np.asarray(seen).astype(int) - colours).max()) <= SAME

"""A test image and its expected pixels, by Pillow and numpy alone."""

import numpy as np
from PIL import Image


def make_image(size=(300, 210), seed=0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def by_hand(image, side, mean, std) -> np.ndarray:
    """Pillow and numpy alone: the shorter side to `side`, the middle 224, float32."""
    width, height = image.size
    scale = side / min(width, height)
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    assert max(size) == int(max(width, height) * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / np.float32(255)
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)

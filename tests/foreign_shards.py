"""Shards as others write them, for tests: WebDataset tars without an index. And rows for shards of our own."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from kgcli.data.shards.records import Compositional, Entity
from kgcli.data.shards.write import Row, encode_image

COLOURS = ["red", "green", "blue", "black", "white", "orange", "purple"]


def encoded(image, suffix="jpg"):
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


def solid(number, size=(20, 12)):
    """A small image that its number decides."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def write_tar(path, groups):
    """Write `{key: {suffix: bytes}}` as a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in groups.items():
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def pairs(first, num):
    """Rows of img2dataset: image, caption and metadata."""
    groups = {}
    for number in range(first, first + num):
        caption = f"{number} a {COLOURS[number % len(COLOURS)]} thing"
        told = {"caption": caption, "url": f"http://x/{number}", "key": f"{number:09d}", "status": "success"}
        groups[f"{number:09d}"] = {
            "jpg": encoded(solid(number)),
            "json": json.dumps(told).encode(),
            "txt": caption.encode(),
        }
    return groups


def write_shards(folder, sizes=(5, 3, 7, 4)):
    """Write some shards of captioned images, numbered through."""
    first = 0
    for number, size in enumerate(sizes):
        write_tar(folder / f"{number:05d}.tar", pairs(first, size))
        first += size
    return folder


def numbers_of(samples):
    """The number that each caption of `pairs` begins with."""
    return [int(sample.caption.split()[0]) for sample in samples]


def entity_rows(numbers):
    """Return rows of captions of which every other begins with its entity."""
    rows = []
    for number in numbers:
        start = 0 if number % 2 else 2
        caption = ("cat" if number % 2 else "a cat") + f" in image {number}"
        entity = Entity(noun="cat", span=(start, start + 3), crop="0.png", crop_on_white="0.png")
        record = Compositional(image="png", caption=caption, entities=(entity,))
        images = {"png": encode_image(solid(number)), "0.png": encode_image(solid(100))}
        rows.append(Row(f"{number:03d}", record, images))
    return rows

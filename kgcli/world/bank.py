"""The sprite bank: Fluent Emoji 3D (Microsoft, MIT; see `NOTICE.txt` beside it) in one image.

Rebuild it with `python -m kgcli.world.bank lobehub-fluent-emoji-3d-1.1.0.tgz`, the file that
`npm pack @lobehub/fluent-emoji-3d@1.1.0` downloads; nothing else is needed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from kgcli.errors import MissingError
from kgcli.world.tables import GLYPHS

PACKAGE_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"  # of the .tgz, version 1.1.0
CELL = 128  # pixels, square, one sprite of the bank
COLUMNS = 8
BANK = Path(__file__).parents[1] / "nano" / "sprites" / "bank.webp"
_INKED = 24  # of 255: less opaque pixels do not count for a sprite's box


def sprite(name: str) -> Image.Image:
    """Return the untouched sprite of a noun or an accessory, RGBA, CELL x CELL pixels."""
    place = list(GLYPHS).index(name)
    x, y = place % COLUMNS * CELL, place // COLUMNS * CELL
    return _bank().crop((x, y, x + CELL, y + CELL))


def build_bank(package: Path, out: Path) -> None:
    """Cut the bank from the pinned npm package.

    Raises:
        MissingError: the file is not there or is another release, whose sprites may differ.
    """
    if not package.is_file():
        raise MissingError(f"there is no file {package}; `npm pack @lobehub/fluent-emoji-3d@1.1.0` downloads it")
    data = package.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != PACKAGE_SHA256:
        raise MissingError(f"{package.name} has sha256 {digest}; the sprite bank is cut from {PACKAGE_SHA256}")
    rows = -(-len(GLYPHS) // COLUMNS)
    bank = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = set(archive.getnames())
        for place, glyph in enumerate(GLYPHS.values()):
            member = archive.extractfile(_member(glyph, names))
            assert member is not None, "a sprite is a regular file"
            bank.paste(_cut(Image.open(member)), (place % COLUMNS * CELL, place // COLUMNS * CELL))
    bank.save(out, lossless=True, quality=100, method=6)


def _member(glyph: str, names: set[str]) -> str:
    """Return the archive's name of a glyph's file; some code points carry the emoji variation selector."""
    points = "-".join(f"{ord(letter):04x}" for letter in glyph)
    candidates = [f"package/assets/{points}{suffix}.webp" for suffix in ("", "-fe0f")]
    return next(name for name in candidates if name in names)


def _cut(image: Image.Image) -> Image.Image:
    """Return a sprite's ink in the middle of a CELL x CELL square, resized with its alpha taken into account."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point([255 * (level > _INKED) for level in range(256)]).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = np.asarray(square.resize((CELL, CELL), Image.Resampling.LANCZOS)).copy()
    small[small[..., 3] < 4] = 0
    return Image.fromarray(small)


@functools.cache
def _bank() -> Image.Image:
    return Image.open(BANK).convert("RGBA")


if __name__ == "__main__":
    BANK.parent.mkdir(parents=True, exist_ok=True)
    build_bank(Path(sys.argv[1]), BANK)

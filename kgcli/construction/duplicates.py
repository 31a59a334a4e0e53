"""Near duplicates of a whole data set: perceptual hashes of images, MinHash of captions.

Each shard's hashes are computed on their own; which samples repeat an earlier one follows from all of them, in the
order of shards and rows, whatever computed them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

HASH_SIDE = 32  # pixels of the grey image that is transformed
LOW = 8  # frequencies kept each way
NUM_PERMUTATIONS = 64
NUM_BANDS = 16
SHINGLE = 2  # words
_PRIME = (1 << 61) - 1


@dataclass(frozen=True)
class Hashes:
    """Hashes of the rows of a shard."""

    keys: list[str]
    images: list[int]  # 64 bits
    captions: list[tuple[int, ...]]  # NUM_PERMUTATIONS minima; empty for a caption without words


def image_hash(image: Image.Image) -> int:
    """Return 64 bits that hardly change when an image is resized or compressed anew."""
    grey = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS), np.float64)
    low = fft.dctn(grey, norm="ortho")[:LOW, :LOW]
    bits = (low > np.median(low)).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def caption_hashes(caption: str) -> tuple[int, ...]:
    """Return the MinHash of a caption: the fraction of equal minima estimates how many word pairs two share."""
    words = caption.lower().split()
    if not words:
        return ()
    shingles = {" ".join(words[place : place + SHINGLE]) for place in range(max(1, len(words) - SHINGLE + 1))}
    values = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=7).digest(), "little") for one in shingles]
    return tuple(min((a * value + b) % _PRIME for value in values) for a, b in _permutations())


def find_repeated(shards: Iterable[Hashes], *, image_bits: int, caption_likeness: float) -> dict[str, str]:
    """Return the keys of samples that repeat an earlier one, with the reason.

    Args:
        image_bits: bits of a perceptual hash that may differ, at most 3; -1: images are not compared
        caption_likeness: fraction of equal minima from which captions are one; above 1: not compared
    """
    repeated: dict[str, str] = {}
    images, captions = _Near(image_bits), _Alike(caption_likeness)
    for shard in shards:
        for key, image, caption in zip(shard.keys, shard.images, shard.captions, strict=True):
            if image_bits >= 0 and images.seen(image):
                repeated[key] = "image repeated"
            elif caption_likeness <= 1 and caption and captions.seen(caption):
                repeated[key] = "caption repeated"
    return repeated


class _Near:
    """Hashes seen so far. Two that differ in at most 3 bits agree in one of four bands of 16."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._bands: list[dict[int, list[int]]] = [{} for _ in range(4)]

    def seen(self, value: int) -> bool:
        """Tell if a near hash was there; note this one otherwise."""
        parts = [(value >> (16 * band)) & 0xFFFF for band in range(4)]
        for band, part in zip(self._bands, parts, strict=True):
            if any((value ^ other).bit_count() <= self.bits for other in band.get(part, ())):
                return True
        for band, part in zip(self._bands, parts, strict=True):
            band.setdefault(part, []).append(value)
        return False


class _Alike:
    """MinHashes seen so far, found by bands."""

    def __init__(self, likeness: float) -> None:
        self.likeness = likeness
        self._bands: dict[tuple[int, ...], list[NDArray[np.int64]]] = {}

    def seen(self, minima: Sequence[int]) -> bool:
        """Tell if an alike caption was there; note this one otherwise."""
        values = np.array(minima, np.int64)
        rows = NUM_PERMUTATIONS // NUM_BANDS
        bands = [(band, *minima[band * rows : (band + 1) * rows]) for band in range(NUM_BANDS)]
        for band in bands:
            if any(float((values == other).mean()) >= self.likeness for other in self._bands.get(band, ())):
                return True
        for band in bands:
            self._bands.setdefault(band, []).append(values)
        return False


@functools.cache
def _permutations() -> list[tuple[int, int]]:
    rng = np.random.default_rng(41)
    return [(int(a), int(b)) for a, b in rng.integers(1, _PRIME, (NUM_PERMUTATIONS, 2))]

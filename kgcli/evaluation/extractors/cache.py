"""Image features cached on disk, so that interrupted scoring resumes.

Images are taken in blocks; a block's file is named by a hash of its content (extractor, images' bytes), so a file that
exists is valid.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import MissingError
from kgcli.evaluation.extractors.base import ImageExtractor, TextExtractor
from kgcli.evaluation.plan import fingerprint
from kgcli.files import sha256, write_whole

FOLDER = "features"
BLOCK = 64  # images
Rows = NDArray[np.float32]
Prepare = Callable[[Path, Image.Image], Image.Image]


@dataclass(frozen=True)
class Alteration:
    """A change of images before extraction; `facts` and `hash_of` identify it in the cache."""

    facts: Mapping[str, str]
    hash_of: Callable[[Path], str]
    apply: Prepare
    is_empty: Callable[[Path], bool] | None = None  # whether it changes nothing; None: it always changes


class FeatureCache:
    """Features of image files, from disk where they are cached."""

    def __init__(self, folder: Path, progress: Callable[[int], None] | None = None) -> None:
        self.folder = folder
        self._progress = progress

    def images(self, extractor: ImageExtractor, files: Sequence[Path], alteration: Alteration | None = None) -> Rows:
        """Return features (N, D), a row for each file. Raises: MissingError, ImageError."""
        blocks = [
            self._block(extractor, files[start : start + BLOCK], alteration) for start in range(0, len(files), BLOCK)
        ]
        return np.concatenate(blocks)

    def texts(self, extractor: TextExtractor, texts: Sequence[str]) -> Rows:
        """Return features (N, D), a row for each text. Raises: UsageError."""
        named = fingerprint({"extractor": extractor.facts(), "texts": list(texts)})
        kept = self.folder / f"{extractor.name}-texts-{named[:32]}.npy"
        rows = _read(kept, len(texts))
        if rows is None:
            rows = np.asarray(extractor.texts(texts), np.float32)
            _write(kept, rows)
        return rows

    def _block(self, extractor: ImageExtractor, files: Sequence[Path], alteration: Alteration | None) -> Rows:
        kept = self._file(extractor, hashes(files, alteration))
        rows = _read(kept, len(files))
        if rows is None:
            images = [open_image(file, srgb=False) for file in files]
            if alteration is not None:
                images = [alteration.apply(file, one) for file, one in zip(files, images, strict=True)]
            rows = np.asarray(extractor.images(images), np.float32)
            _write(kept, rows)
        if self._progress is not None:
            self._progress(len(files))
        return rows

    def _file(self, extractor: ImageExtractor, digests: Sequence[str]) -> Path:
        named = json.dumps({"extractor": extractor.facts(), "pictures": digests}, sort_keys=True)
        return self.folder / f"{extractor.name}-{hashlib.sha256(named.encode()).hexdigest()[:32]}.npy"


def hashes(files: Sequence[Path], alteration: Alteration | None = None) -> list[str]:
    """Return a hash of each image, and of its alteration. Raises: MissingError."""
    try:
        digests = [sha256(file) for file in files]
    except OSError as error:
        raise MissingError(f"{error.filename} cannot be read: {error.strerror}") from None
    if alteration is None:
        return digests
    facts = json.dumps(dict(alteration.facts), sort_keys=True)
    return [f"{one} {facts} {alteration.hash_of(file)}" for one, file in zip(digests, files, strict=True)]


def _read(path: Path, num: int) -> Rows | None:
    """Return the rows of a block; None if they are missing or damaged."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == num and rows.dtype == np.float32 else None


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    write_whole(path, content.getvalue())

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
from kgcli.evaluation.extractors.processes import Job, Processes, shared
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

    def __init__(
        self, folder: Path, progress: Callable[[int], None] | None = None, processes: Processes | None = None
    ) -> None:
        self.folder = folder
        self._progress = progress
        self._processes = processes or Processes()

    def images(self, extractor: ImageExtractor, files: Sequence[Path], alteration: Alteration | None = None) -> Rows:
        """Return features (N, D), a row for each file. Raises: MissingError, ImageError."""
        return self.parts(extractor, [(files, alteration)])[0]

    def parts(self, extractor: ImageExtractor, parts: Sequence[tuple[Sequence[Path], Alteration | None]]) -> list[Rows]:
        """Return features (N, D) of each part, that is files and their alteration. Raises: MissingError, ImageError."""
        blocks = [
            (part, _Block(tuple(files[start : start + BLOCK]), alteration))
            for part, (files, alteration) in enumerate(parts)
            for start in range(0, len(files), BLOCK)
        ]
        kept = [self._file(extractor, hashes(one.files, one.alteration)) for _, one in blocks]
        rows = [_read(path, len(one.files)) for path, (_, one) in zip(kept, blocks, strict=True)]
        absent = [at for at, found in enumerate(rows) if found is None]
        self._report(sum(len(one.files) for (_, one), found in zip(blocks, rows, strict=True) if found is not None))
        self._encode(extractor, [(blocks[at][1], kept[at]) for at in absent])
        for at in absent:
            rows[at] = _read(kept[at], len(blocks[at][1].files))
        by_part: list[list[Rows]] = [[] for _ in parts]
        for (part, one), path, found in zip(blocks, kept, rows, strict=True):
            if found is None:  # another process removed or damaged it just now
                found = encode_block(extractor, one.files, one.alteration, path)
            by_part[part].append(found)
        return [np.concatenate(found) for found in by_part]

    def texts(self, extractor: TextExtractor, texts: Sequence[str]) -> Rows:
        """Return features (N, D), a row for each text. Raises: UsageError."""
        named = fingerprint({"extractor": extractor.facts(), "texts": list(texts)})
        kept = self.folder / f"{extractor.name}-texts-{named[:32]}.npy"
        rows = _read(kept, len(texts))
        if rows is None:
            rows = np.asarray(extractor.texts(texts), np.float32)
            _write(kept, rows)
        return rows

    def _encode(self, extractor: ImageExtractor, absent: Sequence[tuple[_Block, Path]]) -> None:
        """Encode and keep blocks, here or in other processes."""
        if self._processes.takes(len(absent)):
            taken = shared(extractor)
            jobs = [Job(taken, shared(one.alteration), one.files, path) for one, path in absent]
            for job in self._processes.run(jobs):
                self._report(len(job.files))
            return
        for one, path in absent:
            encode_block(extractor, one.files, one.alteration, path)
            self._report(len(one.files))

    def _report(self, num: int) -> None:
        if self._progress is not None and num:
            self._progress(num)

    def _file(self, extractor: ImageExtractor, digests: Sequence[str]) -> Path:
        named = json.dumps({"extractor": extractor.facts(), "pictures": digests}, sort_keys=True)
        return self.folder / f"{extractor.name}-{hashlib.sha256(named.encode()).hexdigest()[:32]}.npy"


@dataclass(frozen=True)
class _Block:
    files: tuple[Path, ...]
    alteration: Alteration | None


def encode_block(extractor: ImageExtractor, files: Sequence[Path], alteration: Alteration | None, kept: Path) -> Rows:
    """Encode images to (N, D) and keep the rows in a file."""
    images = [open_image(file, srgb=False) for file in files]
    if alteration is not None:
        images = [alteration.apply(file, one) for file, one in zip(files, images, strict=True)]
    rows = np.asarray(extractor.images(images), np.float32)
    _write(kept, rows)
    return rows


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

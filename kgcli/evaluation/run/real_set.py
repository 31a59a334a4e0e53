"""Statistics of a set of real images, cached between runs by extractor, weights and images."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kgcli.errors import UsageError
from kgcli.evaluation.extractors.base import ImageExtractor
from kgcli.evaluation.extractors.cache import FeatureCache, hashes
from kgcli.evaluation.extractors.processes import Processes
from kgcli.evaluation.metrics.frechet import Moments
from kgcli.files import write_whole

SAMPLE = 10_000  # vectors kept for measures that need more than moments
SEED = 0  # of the sample


@dataclass(frozen=True)
class RealSet:
    """Feature statistics of the real images."""

    moments: Moments
    sample: NDArray[np.float32]  # (at most SAMPLE, D)
    images_sha256: str  # of the list of the images' hashes, in order


def real_set(
    extractor: ImageExtractor,
    files: Sequence[Path],
    cache: Path,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> RealSet:
    """Return the statistics of image files, from the cache folder if present.

    Raises: UsageError for fewer than two images; MissingError, ImageError.
    """
    if len(files) < 2:
        raise UsageError(f"{len(files)} real image(s) were given; a distribution needs at least two")
    images_sha256 = hashlib.sha256(json.dumps(hashes(files)).encode()).hexdigest()
    named = json.dumps({"extractor": extractor.facts(), "pictures": images_sha256, "sample": SAMPLE}, sort_keys=True)
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    kept = cache / f"{extractor.name}-{key}.npz"
    features = FeatureCache(cache / key, progress, processes)
    found = _read(kept, images_sha256)
    if found is not None:
        shutil.rmtree(features.folder, ignore_errors=True)  # of a process killed just after writing
        return found
    rows = features.images(extractor, files)
    fresh = RealSet(Moments.of(rows), chosen(rows), images_sha256)
    _write(kept, fresh)
    shutil.rmtree(features.folder, ignore_errors=True)  # another process may do the same
    return fresh


def chosen(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return at most SAMPLE rows, always the same ones, in order."""
    if len(rows) <= SAMPLE:
        return rows
    return rows[np.sort(np.random.default_rng(SEED).permutation(len(rows))[:SAMPLE])]


def _write(path: Path, found: RealSet) -> None:
    content = io.BytesIO()
    moments = found.moments
    np.savez(content, num=moments.num, sum=moments.sum_D, products=moments.products_DD, sample=found.sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _read(path: Path, images_sha256: str) -> RealSet | None:
    """Return the cached statistics; None if absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            moments = Moments(len(kept["sum"]))
            moments.num, moments.sum_D, moments.products_DD = int(kept["num"]), kept["sum"], kept["products"]
            return RealSet(moments, kept["sample"], images_sha256)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None

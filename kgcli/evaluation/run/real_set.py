"""Statistics of a set of real pictures, kept between runs by extractor, weights and pictures. No torch."""

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
from kgcli.evaluation.extractors.base import PictureExtractor
from kgcli.evaluation.extractors.cache import FeatureCache, hashes
from kgcli.evaluation.metrics.frechet import Moments
from kgcli.files import write_whole

SAMPLE = 10_000  # vectors kept for the measures that need more than moments
SEED = 0  # of the choice


@dataclass(frozen=True)
class RealSet:
    """What distances are measured from."""

    moments: Moments
    sample: NDArray[np.float32]  # (at most SAMPLE, D)
    pictures_sha256: str  # of the list of the pictures' hashes, in order


def real_set(
    extractor: PictureExtractor, files: Sequence[Path], cache: Path, progress: Callable[[int], None] | None = None
) -> RealSet:
    """The statistics of picture files, from the cache folder where they are there.

    Raises: UsageError for fewer than two; MissingError, ImageError.
    """
    if len(files) < 2:
        raise UsageError(f"{len(files)} real picture(s) were given; a distribution needs at least two")
    of_pictures = hashlib.sha256(json.dumps(hashes(files)).encode()).hexdigest()
    named = json.dumps({"extractor": extractor.facts(), "pictures": of_pictures, "sample": SAMPLE}, sort_keys=True)
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    kept = cache / f"{extractor.name}-{key}.npz"
    features = FeatureCache(cache / key, progress)
    found = _read(kept, of_pictures)
    if found is not None:
        shutil.rmtree(features.folder, ignore_errors=True)  # of a process that was killed when it had just written
        return found
    rows = features.pictures(extractor, files)
    fresh = RealSet(Moments.of(rows), chosen(rows), of_pictures)
    _write(kept, fresh)
    shutil.rmtree(features.folder, ignore_errors=True)  # another process may be at it too
    return fresh


def chosen(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most SAMPLE rows, the same ones each time, in order."""
    if len(rows) <= SAMPLE:
        return rows
    return rows[np.sort(np.random.default_rng(SEED).permutation(len(rows))[:SAMPLE])]


def _write(path: Path, found: RealSet) -> None:
    content = io.BytesIO()
    moments = found.moments
    np.savez(content, num=moments.num, sum=moments.sum_D, products=moments.products_DD, sample=found.sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _read(path: Path, of_pictures: str) -> RealSet | None:
    """The kept statistics; None where there are none or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            moments = Moments(len(kept["sum"]))
            moments.num, moments.sum_D, moments.products_DD = int(kept["num"]), kept["sum"], kept["products"]
            return RealSet(moments, kept["sample"], of_pictures)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None

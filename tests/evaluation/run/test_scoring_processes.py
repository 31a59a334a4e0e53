"""Scoring in several processes: the same bytes for any number, faults as in one, and no process left behind."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kgcli.errors import ImageError, OutOfMemoryError
from kgcli.evaluation.extractors.cache import BLOCK, Alteration, FeatureCache
from kgcli.evaluation.extractors.nano import NanoDino
from kgcli.evaluation.extractors.processes import Processes, default_workers


@dataclass
class Means:
    """An extractor of mean colours; ends its process at the brightest image."""

    name: str = "means"
    ends_at: float = 2.0

    def facts(self):
        return {"extractor": self.name}

    def images(self, images):
        rows = np.stack([np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) / 255 for image in images])
        if rows.max() >= self.ends_at:
            os._exit(1)
        return rows


def darker(path, image):
    return image.point(lambda value: value // 2)


def same(path):
    return "same"


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{number}.png" for number in range(3 * BLOCK + 5)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(path)
    return paths


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_any_number_of_processes_keeps_the_same_bytes(tmp_path, files):
    alteration = Alteration({"darker": "by half"}, same, darker)
    kept, counted = {}, {}
    for num in (1, 2):
        seen = []
        with Processes(num, fewest_blocks=2) as processes:
            cache = FeatureCache(tmp_path / str(num), seen.append, processes)
            plain, dark = cache.parts(Means(), [(files, None), (files[: 2 * BLOCK], alteration)])
            again = cache.images(Means(), files)
        kept[num], counted[num] = contents(tmp_path / str(num)), sum(seen)
        assert np.array_equal(plain, again) and dark.max() < plain.max()
    assert kept[1] == kept[2] and len(kept[1]) == 6
    assert counted[1] == counted[2] == len(files) * 2 + 2 * BLOCK


@pytest.mark.slow
def test_the_nano_extractors_give_the_same_bytes_in_a_process(tmp_path, files):
    for num in (1, 2):
        with Processes(num, fewest_blocks=2) as processes:
            FeatureCache(tmp_path / str(num), None, processes).images(NanoDino(), files)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_damaged_image_is_the_same_fault(tmp_path, files):
    files[-1].write_bytes(b"no image")
    with Processes(2, fewest_blocks=2) as processes, pytest.raises(ImageError, match=files[-1].name):
        FeatureCache(tmp_path / "kept", None, processes).images(Means(), files)
    assert len(contents(tmp_path / "kept")) >= 1  # finished blocks are kept, so a repaired image is all that is left


def test_a_process_that_is_ended_names_the_flag_to_try(tmp_path, files):
    Image.new("RGB", (4, 4), "white").save(files[0])
    with Processes(2, fewest_blocks=2) as processes, pytest.raises(OutOfMemoryError, match="--workers 1"):
        FeatureCache(tmp_path / "kept", None, processes).images(Means(ends_at=1.0), files)


def test_one_block_starts_no_process(tmp_path, files):
    with Processes(8, fewest_blocks=2) as processes:
        FeatureCache(tmp_path / "kept", None, processes).images(Means(), files[:BLOCK])
        assert processes._pool is None


def test_processes_end_with_their_context(tmp_path, files):
    with Processes(2, fewest_blocks=2) as processes:
        FeatureCache(tmp_path / "kept", None, processes).images(Means(), files)
        workers = list(processes._pool._processes.values())
    deadline = time.monotonic() + 20
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


def test_the_default_is_what_the_machine_has():
    assert 1 <= default_workers() <= 8 and default_workers(1) == 1

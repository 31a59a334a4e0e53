"""Scoring runs of the nano suites: by extractors that no generator knows and by the world's judges.

Features of `nano-coco` are those of both extractors in place of an Inception's: no published FID compares with them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kgcli.errors import MissingError
from kgcli.evaluation.distribution import DistributionExtractor
from kgcli.evaluation.judges import Judges
from kgcli.evaluation.nano import SHIPPED_JUDGES
from kgcli.evaluation.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.nano_extractors import UnitVariance, nano_extractors
from kgcli.evaluation.nano_judging import add_judges
from kgcli.evaluation.nano_suites import COCO, NUM_CAPTIONS
from kgcli.evaluation.runs import RunFolder
from kgcli.evaluation.scores import Scores
from kgcli.evaluation.scoring_runs import RealPictures, score_distribution, score_subjects, write_tables
from kgcli.evaluation.subjects import SubjectPhotos

Progress = Callable[[int], None]
NOTE = "A nano suite: made by the nano world and seen by its own extractors. Its numbers are none of a paper's."


def score_nano(run: RunFolder, cache: Path, *, progress: Progress | None = None) -> Scores:
    """Score a run of `nano-dreambench` or `nano-coco` and write scores.json and tables into its folder.

    Args:
        cache: folder where statistics of real pictures are kept between runs

    Raises: MissingError where pictures, photos or weights are missing.
    """
    score = _coco if run.plan.suite == COCO else _dreambench
    scores = add_judges(score(run, cache, progress), run.plan.items, run.path, Judges.load(SHIPPED_JUDGES), NOTE)
    write_tables(scores, run.path)
    return scores


def _dreambench(run: RunFolder, cache: Path, progress: Progress | None) -> Scores:
    data = dreambench_data(Path(run.plan.data))
    _check(data, run)
    references = {name: SubjectPhotos(photos, data.input_of(name)) for name, photos in data.photos.items()}
    return score_subjects(run.path, run.plan, references, nano_extractors(), progress=progress)


def _coco(run: RunFolder, cache: Path, progress: Progress | None) -> Scores:
    data = coco_data(Path(run.plan.data), int(run.plan.protocol["num_real"]))
    _check(data, run)
    real = RealPictures(
        files=[data.folder / photo for photo in data.photos[""]], cache=cache, num_reference=NUM_CAPTIONS
    )
    both = nano_extractors()
    features = [UnitVariance(both.clip), UnitVariance(both.dino)]
    presets = [DistributionExtractor(one.name, one, one) for one in features]
    return score_distribution(run.path, run.plan, real, presets, clip=both.clip, progress=progress)


def _check(data: NanoData, run: RunFolder) -> None:
    """Pillow of another version may render other pictures. Raises: MissingError."""
    if data.sha256 != run.plan.protocol["data_sha256"]:
        raise MissingError(f"the pictures in {data.folder} are no longer those of the run {run.path}; put them back")

"""Scoring runs of the nano suites: by extractors that no generator knows and by the world's judges.

Features of `nano-coco` are those of both extractors in place of an Inception's: no published FID compares with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from kgcli.errors import MissingError
from kgcli.evaluation.benchmarks.nano import COCO, NUM_CAPTIONS, NUM_REAL
from kgcli.evaluation.benchmarks.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.benchmarks.nano_skills import SHIPPED_JUDGES
from kgcli.evaluation.extractors.base import Extractors, PictureExtractor
from kgcli.evaluation.extractors.cache import FOLDER, FeatureCache
from kgcli.evaluation.extractors.nano import UnitVariance, nano_extractors
from kgcli.evaluation.metrics.distribution import DistributionExtractor
from kgcli.evaluation.metrics.frechet import Reference, distance_interval
from kgcli.evaluation.metrics.subjects import SubjectPhotos
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.nano_recognition import add_judges
from kgcli.evaluation.run.real_set import real_set
from kgcli.evaluation.run.score import RealPictures, score_distribution, score_subjects, write_tables
from kgcli.evaluation.scores import Figure, Scores
from kgcli.model.nano_recognisers import Judges

Progress = Callable[[int], None]
LOOKS = "self-supervised ViT"  # what stands where DINO stands
NOTE = "A nano suite: made by the nano world and seen by its own extractors. Its numbers are none of a paper's."


def score_nano(
    run: RunFolder, cache: Path, *, extractors: Extractors | None = None, progress: Progress | None = None
) -> Scores:
    """Score a run of `nano-dreambench` or `nano-coco` and write scores.json and tables into its folder.

    Args:
        cache: folder where statistics of real pictures are kept between runs
        extractors: where not the shipped ones

    Raises: MissingError where pictures, photos or weights are missing.
    """
    score = _coco if run.plan.suite == COCO else _dreambench
    seen = score(run, cache, extractors or nano_extractors(), progress)
    measures = tuple(dataclasses.replace(one, title=one.title.replace("DINO", LOOKS)) for one in seen.measures)
    seen = dataclasses.replace(seen, measures=measures)
    scores = add_judges(seen, run.plan.items, run.path, Judges.load(SHIPPED_JUDGES), NOTE)
    write_tables(scores, run.path)
    return scores


def _dreambench(run: RunFolder, cache: Path, both: Extractors, progress: Progress | None) -> Scores:
    data = dreambench_data(Path(run.plan.data))
    _check(data, run)
    asked = {item.subject for item in run.plan.items}
    references = {name: SubjectPhotos(data.photos[name], data.input_of(name)) for name in data.photos if name in asked}
    return score_subjects(run.path, run.plan, references, both, data=data.folder, progress=progress, write=False)


def _coco(run: RunFolder, cache: Path, both: Extractors, progress: Progress | None) -> Scores:
    data = coco_data(Path(run.plan.data), _num_real(run))
    _check(data, run)
    photos = [data.folder / photo for photo in data.photos[""]]
    real = RealPictures(files=photos, cache=cache, num_reference=NUM_CAPTIONS)
    features = {f"fid_{one.name}": UnitVariance(one) for one in (both.clip, both.dino)}
    presets = [DistributionExtractor(one.name, one, one) for one in features.values()]
    scores = score_distribution(run.path, run.plan, real, presets, clip=both.clip, progress=progress, write=False)
    figures = tuple(
        _with_interval(figure, run, photos, features[figure.measure], cache) if figure.measure in features else figure
        for figure in scores.figures
    )
    return dataclasses.replace(scores, figures=figures)


def _num_real(run: RunFolder) -> int:
    """The size of the run's real set, which is rendered where it is not there yet. Raises: MissingError."""
    num = run.plan.fact("num_real", int)
    if not 2 <= num <= NUM_REAL:
        raise MissingError(f"the plan of {run.path} is damaged: protocol.num_real is {num}; it must be 2 to {NUM_REAL}")
    return num


def _with_interval(
    figure: Figure, run: RunFolder, photos: Sequence[Path], extractor: PictureExtractor, cache: Path
) -> Figure:
    rows = FeatureCache(run.path / FOLDER).pictures(extractor, [run.path / item.path for item in run.plan.items])
    low, high = distance_interval(Reference(real_set(extractor, photos, cache).moments), rows)
    return dataclasses.replace(figure, bootstrap_low=low, bootstrap_high=high)


def _check(data: NanoData, run: RunFolder) -> None:
    """Pillow of another version may render other pictures. Raises: MissingError."""
    if data.sha256 != run.plan.fact("data_sha256", str):
        raise MissingError(f"the pictures in {data.folder} are no longer those of the run {run.path}; put them back")

"""The published suites: the weights and real images that DreamBench and COCO are scored with, and their scoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from kgcli.data.entries import data_files
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.coco import HOW_TO_GET
from kgcli.evaluation.benchmarks.dreambench_data import SUBJECTS, input_photo, open_dreambench
from kgcli.evaluation.extractors.segmenter_files import find_segmenter
from kgcli.evaluation.extractors.weight_files import resolve_all
from kgcli.evaluation.plan import Item, Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import Progress
from kgcli.evaluation.run.scoring import Ready, Scoring

if TYPE_CHECKING:
    from kgcli.evaluation.metrics.subjects import Masks

REAL = "val2014"  # folder of COCO
NUM_REAL = 40_504


def ready_subjects(scoring: Scoring, names: list[str]) -> Ready:
    """Find what suites of subjects are scored with. Raises: UsageError, MissingError, IncompatibleError."""
    asked = scoring.segmenter
    segmenter = None if asked is None else find_segmenter(asked, offline=scoring.offline)
    return Ready(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), segmenter=segmenter)


def ready_coco(data: Path | None, scoring: Scoring, names: list[str]) -> Ready:
    """Find what captions are scored with. Raises: UsageError, MissingError, IncompatibleError."""
    real = _real_images(data, scoring.real)
    return Ready(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), real)


def each_subject(plan: Plan) -> Plan:
    """A plan of several subjects a picture with each picture once for each of its subjects.

    So all that is said of subjects (references, groups, intervals over 30 of them) means what it means elsewhere.
    """
    items = tuple(_of_photo(item, photo) for item in plan.items for photo in item.inputs)
    return dataclasses.replace(plan, items=items)


def _of_photo(item: Item, photo: str) -> Item:
    subject = photo.split("/")[0]
    return dataclasses.replace(item, subject=subject, inputs=(photo,), class_noun=SUBJECTS[subject][0])


def score_published_subjects(run: RunFolder, ready: Ready, device: str, progress: Progress) -> None:
    """Score a run of DreamBench, of one subject in each prompt or several."""
    from kgcli.evaluation.extractors.base import Extractors
    from kgcli.evaluation.extractors.dino import DINO, SIMILARITY, DinoExtractor
    from kgcli.evaluation.extractors.published import ClipExtractor
    from kgcli.evaluation.metrics.subjects import SubjectPhotos
    from kgcli.evaluation.run.score import score_subjects

    data = open_dreambench(Path(run.plan.data))
    if data.sha256 != run.plan.fact("data_sha256", str):
        raise MissingError(f"the photos in {data.folder} are no longer those of this run; put them back")
    references = {name: SubjectPhotos(photos, input_photo(name)) for name, photos in data.photos.items()}
    extractors = Extractors(
        dino=DinoExtractor(DINO, ready.weights["dino"], device),
        clip=ClipExtractor(ready.weights["clip"], device),
        dinov2=DinoExtractor(SIMILARITY, ready.weights["dinov2"], device) if "dinov2" in ready.weights else None,
    )
    plan = each_subject(run.plan)
    masks = _masks(run.path, plan, data.folder, ready, device)
    score_subjects(run.path, plan, references, extractors, masks=masks, progress=progress.add)


def _masks(folder: Path, plan: Plan, data: Path, ready: Ready, device: str) -> Masks | None:
    """What takes backgrounds away, by subject, where that was asked for."""
    from kgcli.evaluation.run.masks import FOLDER, masks_from_files, masks_from_segmenter

    nouns = {item.subject: item.class_noun for item in plan.items}
    if ready.scoring.masks is not None:
        masks = ready.scoring.masks
        return dict.fromkeys(nouns, masks_from_files({folder / "images": masks / "images", data: masks / "data"}))
    if ready.segmenter is None:
        return None
    from kgcli.evaluation.extractors.segmenter import ClipSegmenter

    return masks_from_segmenter(ClipSegmenter(ready.segmenter, device), nouns, folder / FOLDER)


def score_coco(run: RunFolder, ready: Ready, device: str, cache: Path, progress: Progress) -> None:
    """Score a run of COCO; `cache` holds statistics of real sets."""
    from kgcli.evaluation.extractors.inception import NETWORKS, InceptionExtractor, preset
    from kgcli.evaluation.extractors.published import ClipExtractor
    from kgcli.evaluation.metrics.distribution import DistributionExtractor
    from kgcli.evaluation.run.score import RealPictures, score_distribution

    also = ready.scoring.also
    networks = {name: NETWORKS[name](ready.weights[name], device) for name in NETWORKS if name in ready.weights}
    presets = []
    for name in ready.scoring.presets:
        asked = preset(name)
        network = networks[asked.weights]
        real, fake = (InceptionExtractor(network, to_bytes) for to_bytes in (asked.real, asked.fake))
        presets.append(DistributionExtractor(name, real, fake))
    if "fd-dinov2" in also:
        from kgcli.evaluation.extractors.dino import DISTANCE, DinoExtractor

        looks = DinoExtractor(DISTANCE, ready.weights["dinov2-large"], device)
        presets.append(DistributionExtractor("dinov2", looks, looks, frechet="FD", kernel="KD"))
    score_distribution(
        run.path,
        run.plan,
        RealPictures(files=ready.real, cache=cache),
        presets,
        clip=ClipExtractor(ready.weights["clip"], device) if "clip" in ready.weights else None,
        with_cmmd="cmmd" in also,
        progress=progress.add,
    )


def _real_images(data: Path | None, real: Path | None) -> tuple[Path, ...]:
    """The real set: all of val2014, or a folder that was named. Raises: UsageError, MissingError."""
    if real is not None:
        files = tuple(data_files(real, suffixes=(".jpg", ".jpeg", ".png"))) if real.is_dir() else ()
        if len(files) < 2:
            raise UsageError(f"--real is {real}, with {len(files)} pictures in it; it must be a folder of two or more")
        return files
    if data is None:
        raise UsageError(f"give --data FOLDER with {REAL}/, or --real FOLDER of pictures; get it: {HOW_TO_GET}")
    files = tuple(data_files(data / REAL, suffixes=(".jpg",))) if (data / REAL).is_dir() else ()
    if len(files) != NUM_REAL:
        raise MissingError(
            f"{data / REAL} holds {len(files)} pictures in place of {NUM_REAL}; get them: {HOW_TO_GET} (or name "
            "another real set by --real)"
        )
    return files

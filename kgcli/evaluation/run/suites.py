"""The published suites: resources and scoring of DreamBench and COCO."""

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
from kgcli.evaluation.run.scoring import Resources, Scoring

if TYPE_CHECKING:
    from kgcli.evaluation.extractors.processes import Processes
    from kgcli.evaluation.metrics.subjects import Masks

REAL = "val2014"  # folder of COCO
NUM_REAL = 40_504


def subject_resources(scoring: Scoring, names: list[str]) -> Resources:
    """Find the resources of suites of subjects. Raises: UsageError, MissingError, IncompatibleError."""
    name = scoring.segmenter
    segmenter = None if name is None else find_segmenter(name, offline=scoring.offline)
    return Resources(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), segmenter=segmenter)


def coco_resources(data: Path | None, scoring: Scoring, names: list[str]) -> Resources:
    """Find the resources of COCO. Raises: UsageError, MissingError, IncompatibleError."""
    real = _real_images(data, scoring.real)
    return Resources(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), real)


def each_subject(plan: Plan) -> Plan:
    """Repeat each image of a multi-subject plan once for each of its subjects.

    References, groups and intervals over subjects then mean the same as in a single-subject plan.
    """
    items = tuple(_of_photo(item, photo) for item in plan.items for photo in item.inputs)
    return dataclasses.replace(plan, items=items)


def _of_photo(item: Item, photo: str) -> Item:
    subject = photo.split("/")[0]
    return dataclasses.replace(item, subject=subject, inputs=(photo,), class_noun=SUBJECTS[subject][0])


def score_published_subjects(
    run: RunFolder, resources: Resources, device: str, progress: Progress, processes: Processes
) -> None:
    """Score a run of DreamBench with one or several subjects per prompt."""
    from kgcli.evaluation.extractors.base import Extractors
    from kgcli.evaluation.extractors.dino import DINO, SIMILARITY, DinoExtractor
    from kgcli.evaluation.extractors.published import ClipExtractor
    from kgcli.evaluation.metrics.subjects import SubjectPhotos
    from kgcli.evaluation.run.score import score_subjects

    data = open_dreambench(Path(run.plan.data))
    if data.sha256 != run.plan.protocol_value("data_sha256", str):
        raise MissingError(f"the photos in {data.folder} differ from those of this run; restore them")
    references = {name: SubjectPhotos(photos, input_photo(name)) for name, photos in data.photos.items()}
    weights = resources.weights
    extractors = Extractors(
        dino=DinoExtractor(DINO, weights["dino"], device),
        clip=ClipExtractor(weights["clip"], device),
        dinov2=DinoExtractor(SIMILARITY, weights["dinov2"], device) if "dinov2" in weights else None,
    )
    plan = each_subject(run.plan)
    masks = _masks(run.path, plan, data.folder, resources, device)
    score_subjects(run.path, plan, references, extractors, masks=masks, progress=progress.add, processes=processes)


def _masks(folder: Path, plan: Plan, data: Path, resources: Resources, device: str) -> Masks | None:
    """Return the background removal of each subject; None if not requested."""
    from kgcli.evaluation.run.masks import FOLDER, masks_from_files, masks_from_segmenter

    nouns = {item.subject: item.class_noun for item in plan.items}
    if resources.scoring.masks is not None:
        masks = resources.scoring.masks
        return dict.fromkeys(nouns, masks_from_files({folder / "images": masks / "images", data: masks / "data"}))
    if resources.segmenter is None:
        return None
    from kgcli.evaluation.extractors.segmenter import ClipSegmenter

    return masks_from_segmenter(ClipSegmenter(resources.segmenter, device), nouns, folder / FOLDER)


def score_coco(
    run: RunFolder, resources: Resources, device: str, cache: Path, progress: Progress, processes: Processes
) -> None:
    """Score a run of COCO; `cache` holds statistics of real sets."""
    from kgcli.evaluation.extractors.inception import NETWORKS, InceptionExtractor, preset
    from kgcli.evaluation.extractors.published import ClipExtractor
    from kgcli.evaluation.metrics.distribution import DistributionExtractor
    from kgcli.evaluation.run.score import RealImages, score_distribution

    also = resources.scoring.also
    networks = {name: NETWORKS[name](resources.weights[name], device) for name in NETWORKS if name in resources.weights}
    presets = []
    for name in resources.scoring.presets:
        chosen = preset(name)
        network = networks[chosen.weights]
        real, fake = (InceptionExtractor(network, to_bytes) for to_bytes in (chosen.real, chosen.fake))
        presets.append(DistributionExtractor(name, real, fake))
    if "fd-dinov2" in also:
        from kgcli.evaluation.extractors.dino import DISTANCE, DinoExtractor

        dino = DinoExtractor(DISTANCE, resources.weights["dinov2-large"], device)
        presets.append(DistributionExtractor("dinov2", dino, dino, frechet="FD", kernel="KD"))
    score_distribution(
        run.path,
        run.plan,
        RealImages(files=resources.real, cache=cache),
        presets,
        clip=ClipExtractor(resources.weights["clip"], device) if "clip" in resources.weights else None,
        with_cmmd="cmmd" in also,
        progress=progress.add,
        processes=processes,
    )


def _real_images(data: Path | None, real: Path | None) -> tuple[Path, ...]:
    """Return the real set: all of val2014, or the folder of --real. Raises: UsageError, MissingError."""
    if real is not None:
        files = tuple(data_files(real, suffixes=(".jpg", ".jpeg", ".png"))) if real.is_dir() else ()
        if len(files) < 2:
            raise UsageError(f"--real is {real}, which has {len(files)} images; it must be a folder of two or more")
        return files
    if data is None:
        raise UsageError(f"give --data FOLDER with {REAL}/, or --real FOLDER of images; get it: {HOW_TO_GET}")
    files = tuple(data_files(data / REAL, suffixes=(".jpg",))) if (data / REAL).is_dir() else ()
    if len(files) != NUM_REAL:
        raise MissingError(
            f"{data / REAL} has {len(files)} images instead of {NUM_REAL}; get them: {HOW_TO_GET} (or give another "
            "real set by --real)"
        )
    return files

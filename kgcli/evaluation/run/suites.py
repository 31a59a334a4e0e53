"""How the runs of each suite are scored: what is needed is found before anything is drawn, then read when it is used.

Scores are a function of pictures and weights: on a CPU one thread computes, for sums are split by their number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kgcli.data.entries import data_files
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.coco import HOW_TO_GET
from kgcli.evaluation.benchmarks.dreambench_data import SUBJECTS, input_photo, open_dreambench
from kgcli.evaluation.extractors.segmenter_files import find_segmenter
from kgcli.evaluation.extractors.weight_files import Weights, resolve_all, user_cache
from kgcli.evaluation.run.folder import Item, Plan, RunFolder
from kgcli.evaluation.run.generate import Progress
from kgcli.weights.shipped import PACKAGE

if TYPE_CHECKING:
    from kgcli.evaluation.extractors.base import PictureExtractor
    from kgcli.evaluation.metrics.subjects import Masks

REAL = "val2014"  # folder of COCO
NUM_REAL = 40_504
DEFAULT_PRESET = "kosmosg"
# Weights of the FID presets of `inception`, which loads torch.
PRESET_WEIGHTS = {
    "kosmosg": "inception",
    "kosmosg-rescore": "inception",
    "clean": "inception-clean",
    "legacy256": "inception",
}
# Further scores of a suite, and the weights that each takes.
ALSO: dict[str, dict[str, str]] = {
    "dreambench": {"dinov2": "dinov2"},
    "coco": {"clip-score": "clip", "cmmd": "clip", "fd-dinov2": "dinov2-large"},
}
NANO_EVALUATORS = PACKAGE / "nano" / "evaluators"
STATISTICS = "statistics"  # of real sets, in the user's cache


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a user may ask of scoring."""

    weights: Path | None = None  # folder of weight files
    offline: bool = False
    device: str = "auto"
    also: tuple[str, ...] = ()  # of `ALSO`
    masks: Path | None = None  # DreamBench: a folder with data/ and images/ like those of photos and run
    segmenter: str | None = None  # DreamBench: what makes masks, a folder, a Hub id or "default"
    presets: tuple[str, ...] = (DEFAULT_PRESET,)  # COCO: the first is shown first
    real: Path | None = None  # COCO: another real set than val2014

    def __post_init__(self) -> None:
        for flag, names in (("--preset", self.presets), ("--also", self.also)):
            if len(set(names)) < len(names):
                raise UsageError(f"{flag} names {max(names, key=names.count)} more than once")
        for name in self.presets:
            if name not in PRESET_WEIGHTS:
                raise UsageError(f"--preset is {name}; it must be one of {', '.join(PRESET_WEIGHTS)}")
        if self.masks is not None and not self.masks.is_dir():
            raise UsageError(f"--masks is {self.masks}; it must be a folder with data/ and images/ in it")
        if self.masks is not None and self.segmenter is not None:
            raise UsageError("--masks and --segmenter are both given; masks are files or are made, give one of them")


@dataclass(frozen=True)
class Ready:
    """What scoring one suite takes, all of it found."""

    scoring: Scoring
    weights: dict[str, Weights]
    real: tuple[Path, ...] = ()
    segmenter: Weights | None = None


def get_ready(suite: str, data: Path | None, scoring: Scoring) -> Ready:
    """Find the weights and real pictures that a suite is scored with.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    known = _known_scores(suite, scoring)
    also = [known[name] for name in scoring.also]
    if suite.startswith("nano-"):
        _refuse_on_nano(suite, scoring)
        if not NANO_EVALUATORS.is_dir():
            raise MissingError(f"the evaluators of the nano suites are not in {NANO_EVALUATORS}; install kgcli again")
        return Ready(scoring, {})
    if suite != "coco":
        asked = scoring.segmenter
        segmenter = None if asked is None else find_segmenter(asked, offline=scoring.offline)
        weights = resolve_all(["dino", "clip", *also], scoring.weights, offline=scoring.offline)
        return Ready(scoring, weights, segmenter=segmenter)
    names = [PRESET_WEIGHTS[name] for name in scoring.presets] + also
    real = _real_pictures(data, scoring.real)
    return Ready(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), real)


def score_run(run: RunFolder, ready: Ready) -> None:
    """Score a run whose pictures are all there: scores.json and tables in its folder."""
    from kgcli.runtime import choose_device

    device = choose_device(ready.scoring.device)
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    else:
        # Convolutions in TF32, torch's default, would be called float32 and be kept beside those of a CPU.
        torch.backends.cudnn.allow_tf32 = False
    progress = Progress("pictures seen by an extractor")
    if run.plan.suite.startswith("nano-"):
        from kgcli.evaluation.run.nano_score import score_nano

        score_nano(run, user_cache() / STATISTICS, progress=progress.add)
    elif run.plan.suite == "coco":
        _score_coco(run, ready, device, progress)
    else:
        _score_subjects(run, ready, device, progress)


def each_subject(plan: Plan) -> Plan:
    """A plan of several subjects a picture with each picture once for each of its subjects.

    So all that is said of subjects (references, groups, intervals over 30 of them) means what it means elsewhere.
    """
    items = tuple(_of_photo(item, photo) for item in plan.items for photo in item.inputs)
    return dataclasses.replace(plan, items=items)


def _of_photo(item: Item, photo: str) -> Item:
    subject = photo.split("/")[0]
    return dataclasses.replace(item, subject=subject, inputs=(photo,), class_noun=SUBJECTS[subject][0])


def _score_subjects(run: RunFolder, ready: Ready, device: str, progress: Progress) -> None:
    from kgcli.evaluation.extractors.base import Extractors
    from kgcli.evaluation.extractors.published import ClipExtractor, DinoExtractor
    from kgcli.evaluation.metrics.subjects import SubjectPhotos
    from kgcli.evaluation.run.score import score_subjects

    data = open_dreambench(Path(run.plan.data))
    if data.sha256 != run.plan.fact("data_sha256", str):
        raise MissingError(f"the photos in {data.folder} are no longer those of this run; put them back")
    references = {name: SubjectPhotos(photos, input_photo(name)) for name, photos in data.photos.items()}
    extractors = Extractors(
        dino=DinoExtractor(ready.weights["dino"], device),
        clip=ClipExtractor(ready.weights["clip"], device),
        dinov2=_dinov2(ready.weights["dinov2"], device) if "dinov2" in ready.weights else None,
    )
    plan = each_subject(run.plan)
    masks = _masks(run.path, plan, data.folder, ready, device)
    score_subjects(run.path, plan, references, extractors, masks=masks, progress=progress.add)


def _dinov2(weights: Weights, device: str) -> PictureExtractor:
    from kgcli.evaluation.extractors.dinov2 import SIMILARITY, Dinov2Extractor

    return Dinov2Extractor(SIMILARITY, weights, device)


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


def _score_coco(run: RunFolder, ready: Ready, device: str, progress: Progress) -> None:
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
        from kgcli.evaluation.extractors.dinov2 import DISTANCE, Dinov2Extractor

        looks = Dinov2Extractor(DISTANCE, ready.weights["dinov2-large"], device)
        presets.append(DistributionExtractor("dinov2", looks, looks, frechet="FD", kernel="KD"))
    score_distribution(
        run.path,
        run.plan,
        RealPictures(files=ready.real, cache=user_cache() / STATISTICS),
        presets,
        clip=ClipExtractor(ready.weights["clip"], device) if "clip" in ready.weights else None,
        with_cmmd="cmmd" in also,
        progress=progress.add,
    )


def _known_scores(suite: str, scoring: Scoring) -> dict[str, str]:
    """The suite's further scores. Raises: UsageError where others, or masks it has no use for, are asked for."""
    known = ALSO.get(suite.removesuffix("-multi"), {})
    for name in scoring.also:
        if name not in known:
            offered = f"it must be one of {', '.join(known)}" if known else "the suite has no further scores"
            raise UsageError(f"--also is {name}; for {suite} {offered}")
    for flag, value in (("--masks", scoring.masks), ("--segmenter", scoring.segmenter)):
        if value is not None and not suite.startswith("dreambench"):
            raise UsageError(f"{flag} is {value}; {suite} is not scored without backgrounds, leave it out")
    return known


def _refuse_on_nano(suite: str, scoring: Scoring) -> None:
    """The nano suites bring all that they are scored with. Raises: UsageError."""
    for flag, value, default in (
        ("--weights", scoring.weights, None),
        ("--real", scoring.real, None),
        ("--preset", scoring.presets, (DEFAULT_PRESET,)),
    ):
        if value != default:
            raise UsageError(f"{flag} has no use with {suite}, which brings what it is scored with; leave it out")


def check_texts(plan: Plan, ready: Ready) -> None:
    """See that CLIP reads every text that it will score. Raises: UsageError."""
    if plan.suite == "coco" and "clip" in ready.weights:
        from kgcli.evaluation.extractors.published import clip_tokens

        clip_tokens(list(dict.fromkeys(item.scored_text for item in plan.items)))


def _real_pictures(data: Path | None, real: Path | None) -> tuple[Path, ...]:
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

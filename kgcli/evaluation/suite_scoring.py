"""How the runs of each suite are scored: what is needed is found before anything is drawn, then read when it is used.

Scores are a function of pictures and weights: on a CPU one thread computes, for sums are split by their number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.coco import HOW_TO_GET
from kgcli.evaluation.drawing import Progress
from kgcli.evaluation.dreambench_data import input_photo, open_dreambench
from kgcli.evaluation.runs import Plan, RunFolder
from kgcli.evaluation.weightfiles import Weights, resolve_all, user_cache
from kgcli.shipped import PACKAGE

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
NANO_EVALUATORS = PACKAGE / "nano" / "evaluators"
STATISTICS = "statistics"  # of real sets, in the user's cache


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a user may ask of scoring."""

    weights: Path | None = None  # folder of weight files
    offline: bool = False
    device: str = "auto"
    masks: Path | None = None  # DreamBench: a folder with data/ and images/ like those of photos and run
    presets: tuple[str, ...] = (DEFAULT_PRESET,)  # COCO: the first is shown first
    real: Path | None = None  # COCO: another real set than val2014
    clip_score: bool = False  # COCO
    cmmd: bool = False  # COCO

    def __post_init__(self) -> None:
        for name in self.presets:
            if name not in PRESET_WEIGHTS:
                raise UsageError(f"--preset is {name}; it must be one of {', '.join(PRESET_WEIGHTS)}")
        if self.masks is not None and not self.masks.is_dir():
            raise UsageError(f"--masks is {self.masks}; it must be a folder with data/ and images/ in it")


@dataclass(frozen=True)
class Ready:
    """What scoring one suite takes, all of it found."""

    scoring: Scoring
    weights: dict[str, Weights]
    real: tuple[Path, ...] = ()


def get_ready(suite: str, data: Path | None, scoring: Scoring) -> Ready:
    """Find the weights and real pictures that a suite is scored with.

    Raises: MissingError, IncompatibleError.
    """
    if suite.startswith("nano-"):
        if not NANO_EVALUATORS.is_dir():
            raise MissingError(f"the evaluators of the nano suites are not in {NANO_EVALUATORS}; install kgcli again")
        return Ready(scoring, {})
    if suite != "coco":
        return Ready(scoring, resolve_all(["dino", "clip"], scoring.weights, offline=scoring.offline))
    names = [PRESET_WEIGHTS[name] for name in scoring.presets]
    names += ["clip"] if scoring.clip_score or scoring.cmmd else []
    real = _real_pictures(data, scoring.real)
    return Ready(scoring, resolve_all(names, scoring.weights, offline=scoring.offline), real)


def score_run(run: RunFolder, ready: Ready) -> None:
    """Score a run whose pictures are all there: scores.json and tables in its folder."""
    from kgcli.engine import choose_device

    device = choose_device(ready.scoring.device)
    if device == "cpu":
        import torch

        torch.set_num_threads(1)
    progress = Progress("pictures seen by an extractor")
    if run.plan.suite.startswith("nano-"):
        from kgcli.evaluation.nano_scoring import score_nano

        score_nano(run, user_cache() / STATISTICS, progress=progress.add)
    elif run.plan.suite == "coco":
        _score_coco(run, ready, device, progress)
    else:
        _score_subjects(run, ready, device, progress)


def each_subject(plan: Plan) -> Plan:
    """A plan of several subjects a picture with each picture once for each of its subjects.

    So all that is said of subjects (references, groups, intervals over 30 of them) means what it means elsewhere.
    """
    items = tuple(
        dataclasses.replace(item, subject=photo.split("/")[0], inputs=(photo,))
        for item in plan.items
        for photo in item.inputs
    )
    return dataclasses.replace(plan, items=items)


def _score_subjects(run: RunFolder, ready: Ready, device: str, progress: Progress) -> None:
    from kgcli.evaluation.extractors import Extractors
    from kgcli.evaluation.features import ClipExtractor, DinoExtractor
    from kgcli.evaluation.masks import masks_from_files
    from kgcli.evaluation.scoring_runs import score_subjects
    from kgcli.evaluation.subjects import SubjectPhotos

    data = open_dreambench(Path(run.plan.data))
    if data.sha256 != run.plan.protocol["data_sha256"]:
        raise MissingError(f"the photos in {data.folder} are no longer those of this run; put them back")
    references = {name: SubjectPhotos(photos, input_photo(name)) for name, photos in data.photos.items()}
    extractors = Extractors(
        dino=DinoExtractor(ready.weights["dino"], device), clip=ClipExtractor(ready.weights["clip"], device)
    )
    masks = ready.scoring.masks
    roots = {} if masks is None else {run.path / "images": masks / "images", data.folder: masks / "data"}
    score_subjects(
        run.path,
        each_subject(run.plan),
        references,
        extractors,
        masks=masks_from_files(roots) if roots else None,
        progress=progress.add,
    )


def _score_coco(run: RunFolder, ready: Ready, device: str, progress: Progress) -> None:
    from kgcli.evaluation.distribution import DistributionExtractor
    from kgcli.evaluation.features import ClipExtractor
    from kgcli.evaluation.inception import NETWORKS, InceptionExtractor, preset
    from kgcli.evaluation.scoring_runs import RealPictures, score_distribution

    networks = {name: NETWORKS[name](ready.weights[name], device) for name in NETWORKS if name in ready.weights}
    presets = []
    for name in ready.scoring.presets:
        asked = preset(name)
        network = networks[asked.weights]
        sides = [InceptionExtractor(network, to_bytes) for to_bytes in (asked.real, asked.fake)]
        presets.append(DistributionExtractor(name, *sides))
    score_distribution(
        run.path,
        run.plan,
        RealPictures(files=ready.real, cache=user_cache() / STATISTICS),
        presets,
        clip=ClipExtractor(ready.weights["clip"], device) if "clip" in ready.weights else None,
        with_cmmd=ready.scoring.cmmd,
        progress=progress.add,
    )


def _real_pictures(data: Path | None, real: Path | None) -> tuple[Path, ...]:
    """The real set: all of val2014, or a folder that was named. Raises: UsageError, MissingError."""
    if real is not None:
        files = tuple(sorted(path for path in real.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")))
        if not files:
            raise UsageError(f"--real is {real}; it must be a folder of pictures")
        return files
    if data is None:
        raise UsageError(f"give --data FOLDER with {REAL}/, or --real FOLDER of pictures; get it: {HOW_TO_GET}")
    files = tuple(sorted((data / REAL).glob("*.jpg")))
    if len(files) != NUM_REAL:
        raise MissingError(
            f"{data / REAL} holds {len(files)} pictures in place of {NUM_REAL}; get them: {HOW_TO_GET} (or name "
            "another real set by --real)"
        )
    return files

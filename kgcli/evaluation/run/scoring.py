"""Options and resources of scoring: resolved before anything is generated, then passed to the suite's scorer.

Scores are a function of images and weights: on a CPU a single thread computes, since sums depend on the thread count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kgcli.errors import UsageError, raise_all
from kgcli.evaluation.benchmarks.nano_world import NanoWeights, find_weights
from kgcli.evaluation.extractors.processes import Processes, compute_exactly
from kgcli.evaluation.plan import Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import Progress
from kgcli.runtime import choose_device, user_cache

if TYPE_CHECKING:
    from kgcli.evaluation.extractors.weight_files import Weights

DEFAULT_PRESET = "kosmosg"
# Weights of the FID presets of `inception`, which loads torch.
PRESET_WEIGHTS = {
    "kosmosg": "inception",
    "kosmosg-rescore": "inception",
    "clean": "inception-clean",
    "legacy256": "inception",
}
# Optional scores of a suite, and the weights each needs.
ALSO: dict[str, dict[str, str]] = {
    "dreambench": {"dinov2": "dinov2"},
    "coco": {"clip-score": "clip", "cmmd": "clip", "fd-dinov2": "dinov2-large"},
}
STATISTICS = "statistics"  # of real sets, in the user's cache


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Options of scoring."""

    weights: Path | None = None  # folder of weight files; of a nano suite: judges, eval_clip, eval_dino
    offline: bool = False
    device: str = "auto"
    also: tuple[str, ...] = ()  # keys of `ALSO`
    masks: Path | None = None  # DreamBench: a folder with data/ and images/ laid out as photos and run
    segmenter: str | None = None  # DreamBench: model that makes masks: a folder, a Hub id or "default"
    workers: int = 1  # processes that encode images
    presets: tuple[str, ...] = (DEFAULT_PRESET,)  # COCO: the first is the primary one
    real: Path | None = None  # COCO: a real set instead of val2014

    def __post_init__(self) -> None:
        raise_all([UsageError(message) for message in self._faults()])

    def _faults(self) -> Iterator[str]:
        for flag, names in (("--preset", self.presets), ("--also", self.also)):
            if len(set(names)) < len(names):
                yield f"{flag} names {max(names, key=names.count)} more than once"
        for name in self.presets:
            if name not in PRESET_WEIGHTS:
                yield f"--preset is {name}; it must be one of {', '.join(PRESET_WEIGHTS)}"
        if self.masks is not None and not self.masks.is_dir():
            yield f"--masks is {self.masks}; it must be a folder that contains data/ and images/"
        if self.masks is not None and self.segmenter is not None:
            yield "--masks and --segmenter are both given; give one of them"


@dataclass(frozen=True)
class Resources:
    """The resolved files needed to score one suite."""

    scoring: Scoring
    weights: dict[str, Weights]
    real: tuple[Path, ...] = ()
    segmenter: Weights | None = None
    nano: NanoWeights | None = None  # of a nano suite


def find_resources(suite: str, data: Path | None, scoring: Scoring) -> Resources:
    """Find the weights and real images that scoring a suite needs.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    check_suits(suite, scoring)
    also = [ALSO[suite.removesuffix("-multi")][name] for name in scoring.also]
    if suite.startswith("nano-"):
        return Resources(scoring, {}, nano=find_weights(scoring.weights))
    from kgcli.evaluation.run.suites import coco_resources, subject_resources

    if suite == "coco":
        return coco_resources(data, scoring, [PRESET_WEIGHTS[name] for name in scoring.presets] + also)
    return subject_resources(scoring, ["dino", "clip", *also])


def score_run(run: RunFolder, resources: Resources) -> None:
    """Score a complete run: write scores.json and tables into its folder."""
    progress, cache = Progress("images encoded by an extractor"), user_cache() / STATISTICS
    num = resources.scoring.workers
    if run.plan.suite.startswith("nano-"):
        from kgcli.evaluation.run.nano_score import score_nano

        if resources.scoring.device not in ("auto", "cpu"):
            choose_device(resources.scoring.device)  # imports torch, which cached scores do not need
        with Processes(num) as processes:
            score_nano(run, cache, weights=resources.nano, progress=progress.add, processes=processes)
        return
    from kgcli.evaluation.run.suites import score_coco, score_published_subjects

    device = choose_device(resources.scoring.device)
    compute_exactly(device)
    with Processes(num if device == "cpu" else 1, device) as processes:
        if run.plan.suite == "coco":
            score_coco(run, resources, device, cache, progress, processes)
        else:
            score_published_subjects(run, resources, device, progress, processes)


def check_suits(suite: str, scoring: Scoring) -> None:
    """Refuse options of scoring that a suite does not have. Raises: UsageError, SeveralErrors."""
    known = ALSO.get(suite.removesuffix("-multi"), {})
    offered = f"it must be one of {', '.join(known)}" if known else "the suite has no optional scores"
    faults = [f"--also is {name}; for {suite} {offered}" for name in scoring.also if name not in known]
    if not suite.startswith("dreambench"):
        faults += [
            f"{flag} is {value}; {suite} is always scored with backgrounds, leave it out"
            for flag, value in (("--masks", scoring.masks), ("--segmenter", scoring.segmenter))
            if value is not None
        ]
    if suite.startswith("nano-"):
        given = {
            "--real": scoring.real,
            "--preset": set(scoring.presets) - {DEFAULT_PRESET},
        }
        faults += [
            f"{flag} does not apply to {suite}, which has its own extractors; leave it out"
            for flag, value in given.items()
            if value
        ]
    raise_all([UsageError(fault) for fault in faults])


def check_texts(plan: Plan, resources: Resources) -> None:
    """Check that every text to score fits CLIP. Raises: UsageError."""
    if plan.suite == "coco" and "clip" in resources.weights:
        from kgcli.evaluation.extractors.published import clip_tokens

        clip_tokens(list(dict.fromkeys(item.scored_text for item in plan.items)))

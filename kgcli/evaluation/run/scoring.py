"""What scoring a run takes: asked for, found before anything is generated, and handed to the suite that scores.

Scores are a function of images and weights: on a CPU one thread computes, for sums are split by their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.plan import Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import Progress
from kgcli.runtime import choose_device, user_cache
from kgcli.weights.shipped import PACKAGE

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
    """Find the weights and real images that a suite is scored with.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    also = _also(suite, scoring)
    if suite.startswith("nano-"):
        _refuse_on_nano(suite, scoring)
        if not NANO_EVALUATORS.is_dir():
            raise MissingError(f"the evaluators of the nano suites are not in {NANO_EVALUATORS}; install kgcli again")
        return Ready(scoring, {})
    from kgcli.evaluation.run.suites import ready_coco, ready_subjects

    if suite == "coco":
        return ready_coco(data, scoring, [PRESET_WEIGHTS[name] for name in scoring.presets] + also)
    return ready_subjects(scoring, ["dino", "clip", *also])


def score_run(run: RunFolder, ready: Ready) -> None:
    """Score a run whose pictures are all there: scores.json and tables in its folder."""
    progress, cache = Progress("pictures seen by an extractor"), user_cache() / STATISTICS
    if run.plan.suite.startswith("nano-"):
        from kgcli.evaluation.run.nano_score import score_nano

        if ready.scoring.device not in ("auto", "cpu"):
            choose_device(ready.scoring.device)  # imports torch, which scores that are known already do without
        score_nano(run, cache, progress=progress.add)
        return
    from kgcli.evaluation.run.suites import score_coco, score_published_subjects

    device = _prepare_device(ready.scoring.device)
    if run.plan.suite == "coco":
        score_coco(run, ready, device, cache, progress)
    else:
        score_published_subjects(run, ready, device, progress)


def _prepare_device(name: str) -> str:
    import torch

    device = choose_device(name)
    if device == "cpu":
        torch.set_num_threads(1)
    else:
        # Convolutions in TF32, torch's default, would be called float32 and be kept beside those of a CPU.
        torch.backends.cudnn.allow_tf32 = False
    return device


def _also(suite: str, scoring: Scoring) -> list[str]:
    """The weights of the suite's further scores. Raises: UsageError for others, or masks it has no use for."""
    known = ALSO.get(suite.removesuffix("-multi"), {})
    for name in scoring.also:
        if name not in known:
            offered = f"it must be one of {', '.join(known)}" if known else "the suite has no further scores"
            raise UsageError(f"--also is {name}; for {suite} {offered}")
    for flag, value in (("--masks", scoring.masks), ("--segmenter", scoring.segmenter)):
        if value is not None and not suite.startswith("dreambench"):
            raise UsageError(f"{flag} is {value}; {suite} is not scored without backgrounds, leave it out")
    return [known[name] for name in scoring.also]


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

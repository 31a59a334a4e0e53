"""Scoring of a run: from its images to scores.json and tables. Equal images give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.extractors.base import Extractors, TextExtractor
from kgcli.evaluation.extractors.cache import FOLDER, Alteration, FeatureCache, hashes
from kgcli.evaluation.extractors.processes import Processes
from kgcli.evaluation.metrics.distribution import (
    DEFINITIONS,
    FEWEST,
    DistributionExtractor,
    distribution_figures,
    measures_of,
)
from kgcli.evaluation.metrics.kernels import cmmd
from kgcli.evaluation.metrics.subjects import (
    COPY_INPUT,
    DINOV2,
    MASKED,
    ORACLE,
    SUBJECT_MEASURES,
    Masks,
    SubjectPhotos,
    SubjectScorer,
)
from kgcli.evaluation.plan import Item, Plan, fingerprint
from kgcli.evaluation.report.tables import CSV, IMAGES_CSV, MARKDOWN, images_to_csv, to_csv, to_markdown
from kgcli.evaluation.run.real_set import chosen, real_set
from kgcli.evaluation.scores import Figure, ImageScore, Measure, Scores, figures_of, image_score
from kgcli.files import write_whole
from kgcli.runtime import versions

PACKAGES = (
    *("clean-fid", "numpy", "open_clip_torch", "pillow", "scipy"),
    *("timm", "torch", "torch-fidelity", "torchmetrics", "torchvision"),
)
CLIP_SCORE = Measure(name="clip_t", title="CLIP score (cosine)", primary=True)
CMMD = Measure(name="cmmd", title="CMMD with this run's CLIP", higher_is_better=False)
Progress = Callable[[int], None]  # called with the number of images just processed


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The real set of a distribution."""

    files: Sequence[Path]
    cache: Path  # folder of statistics shared between runs
    num_reference: int = 30_000  # generated images behind the published scores


def score_subjects(
    folder: Path,
    plan: Plan,
    references: Mapping[str, SubjectPhotos],
    extractors: Extractors,
    *,
    data: Path | None = None,
    out: Path | None = None,
    masks: Masks | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    write: bool = True,
) -> Scores:
    """Score the images of a plan in a folder, and write scores.json and tables into `out` (default: the folder).

    Feature vectors are cached in `features` there, so interrupted scoring resumes. `data` overrides the plan's folder
    of photos. With `write=False` the caller completes and writes the scores.

    Raises: MissingError for missing images or photos; UsageError for unsuitable references.
    """
    out = out or folder
    _check_images(folder, plan.items)
    scorer = SubjectScorer(
        plan.items, data or Path(plan.data), references, FeatureCache(out / FOLDER, progress, processes)
    )
    found = scorer(folder, extractors, masks)
    measures = SUBJECT_MEASURES
    photos = fingerprint(hashes([file for _, file in scorer.photo_files()]))
    scoring = {"dino": extractors.dino.facts(), "clip": extractors.clip.facts(), "photos_sha256": photos}
    if masks is not None:
        measures += MASKED
        scoring["masks"] = dict(next(iter(masks.values())).facts)
    if extractors.dinov2 is not None:
        measures += DINOV2
        scoring["dinov2"] = extractors.dinov2.facts()
    names = [one.name for one in measures]
    rows = ((found.method, "method"), (found.copy_input, COPY_INPUT), (found.oracle, ORACLE))
    figures = tuple(figure for images, row in rows for figure in figures_of(images, names, row))
    notes = [
        *_random_notes([facts for facts in scoring.values() if isinstance(facts, dict)]),
        *_photo_notes(scorer.references),
        *_mask_notes(scorer, folder, masks or {}),
    ]
    scores = _scores(plan, scoring, measures, figures, found.method, notes)
    if write:
        write_tables(scores, out)
    return scores


def score_distribution(
    folder: Path,
    plan: Plan,
    real: RealImages,
    presets: Sequence[DistributionExtractor],
    *,
    clip: TextExtractor | None = None,
    with_cmmd: bool = False,
    out: Path | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    write: bool = True,
) -> Scores:
    """Score the images of a plan as a set against real ones; the first preset is the primary one.

    Raises: MissingError for missing images; UsageError for too few.
    """
    out = out or folder
    _check_images(folder, plan.items)
    if len(plan.items) < 2 or len(real.files) < 2:
        raise UsageError(
            f"{len(plan.items)} generated and {len(real.files)} real images; FID needs at least two of each"
        )
    if with_cmmd and clip is None:
        raise UsageError("CMMD needs a CLIP model")
    cache = FeatureCache(out / FOLDER, progress, processes)
    files = [folder / item.path for item in plan.items]
    images = tuple(image_score(item) for item in plan.items)
    measures: tuple[Measure, ...] = ()
    figures: tuple[Figure, ...] = ()
    scoring: dict[str, Any] = {}
    for place, preset in enumerate(presets):
        reals = real_set(preset.real, real.files, real.cache, progress, processes)
        figures += distribution_figures(preset, reals, cache.images(preset.fake, files))
        measures += measures_of(preset, primary=place == 0)
        scoring[preset.name] = {"real": preset.real.facts(), "fake": preset.fake.facts(), "num_real": len(real.files)}
        scoring["real_sha256"] = reals.images_sha256
    if clip is not None:
        rows = cache.images(clip, files)
        images = _with_clip(plan.items, rows, clip, cache)
        measures += (CLIP_SCORE,)
        figures += figures_of(images, [CLIP_SCORE.name], by_subject=False)
        scoring["clip"] = clip.facts()
    if clip is not None and with_cmmd:
        value = cmmd(real_set(clip, real.files, real.cache, progress, processes).sample, chosen(rows))
        measures += (CMMD,)
        figures += (Figure(measure=CMMD.name, value=value, num_pictures=len(files)),)
    notes = [*_random_notes(_all_facts(presets, clip)), *_count_notes(len(files), real.num_reference, figures)]
    scores = _scores(plan, {**scoring, "measures": DEFINITIONS}, measures, figures, images, notes)
    if write:
        write_tables(scores, out)
    return scores


def _with_clip(
    items: Sequence[Item], rows: NDArray[np.float32], clip: TextExtractor, cache: FeatureCache
) -> tuple[ImageScore, ...]:
    """Return the images' scores with the cosine similarity to their texts."""
    texts = list(dict.fromkeys(item.scored_text for item in items))
    vectors = dict(zip(texts, np.asarray(cache.texts(clip, texts), np.float64), strict=True))
    scored = []
    for item, row in zip(items, np.asarray(rows, np.float64), strict=True):
        text = vectors[item.scored_text]
        cosine = float(row @ text / (np.linalg.norm(row) * np.linalg.norm(text)))
        scored.append(image_score(item, {CLIP_SCORE.name: cosine}))
    return tuple(scored)


def _check_images(folder: Path, items: Sequence[Item]) -> None:
    missing = [item.path for item in items if not (folder / item.path).is_file()]
    if missing:
        raise MissingError(
            f"{folder}: {len(missing)} of {len(items)} images are missing, the first {missing[0]}; "
            "scoring needs all of them"
        )
    if not items:
        raise UsageError("there are no images to score")


def _scores(
    plan: Plan,
    scoring: Mapping[str, Any],
    measures: tuple[Measure, ...],
    figures: tuple[Figure, ...],
    images: tuple[ImageScore, ...],
    notes: Sequence[str],
) -> Scores:
    found = versions(PACKAGES)
    return Scores(
        suite=plan.suite,
        protocol={**plan.protocol, "num_pictures": len({item.path for item in plan.items}), "scoring": dict(scoring)},
        method=plan.method,
        versions={name: version for name, version in found.items() if name != "python"},
        data=plan.data,
        measures=measures,
        figures=figures,
        pictures=images,
        notes=tuple(notes),
    )


def write_tables(scores: Scores, out: Path) -> None:
    """Write scores.json and the tables of scores into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / CSV, to_csv(scores).encode())
    write_whole(out / IMAGES_CSV, images_to_csv(scores).encode())
    write_whole(out / MARKDOWN, to_markdown(scores).encode())
    scores.write(out)  # last, so that its presence implies the tables


def _all_facts(presets: Sequence[DistributionExtractor], clip: TextExtractor | None) -> list[Mapping[str, Any]]:
    sides = [side.facts() for one in presets for side in (one.real, one.fake)]
    return [*sides, *([] if clip is None else [clip.facts()])]


def _random_notes(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(
        one.get("extractor", "an extractor") for one in facts if str(one.get("weights_sha256", "")).startswith("random")
    )
    return [f"The weights of {name} are random: its scores are meaningless." for name in names]


def _photo_notes(references: Mapping[str, SubjectPhotos]) -> list[str]:
    alone = sorted(subject for subject, one in references.items() if len(set(one.photos)) < 2)
    if not alone:
        return []
    return [f"{len(alone)} subject(s) with one photo are excluded from the measures of other photos: {alone[0]} ..."]


def _mask_notes(scorer: SubjectScorer, folder: Path, masks: Masks) -> list[str]:
    """Count the images and photos whose mask is empty."""
    counts, first = [], None
    for named in (scorer.files(folder), scorer.photo_files()):
        empty = [file for subject, file in named if subject in masks and _is_empty(masks[subject], file)]
        counts.append(f"{len(empty)} of {len(named)}")
        first = first or next(iter(empty), None)
    if first is None:
        return []
    return [
        f"The segmenter marked nothing in {counts[0]} images and {counts[1]} photos, the first "
        f"{first.parent.name}/{first.name}; DINO with white backgrounds uses the whole image there."
    ]


def _is_empty(alteration: Alteration, file: Path) -> bool:
    return alteration.is_empty is not None and alteration.is_empty(file)


def _count_notes(num: int, num_reference: int, figures: Sequence[Figure]) -> list[str]:
    notes = []
    extrapolated = any("_infinity_" in figure.measure for figure in figures)
    if num != num_reference:
        advice = "compare FID-infinity, or generate" if extrapolated else "generate"
        notes.append(
            f"FID uses {num} images instead of the suite's {num_reference}, and its bias depends on the number: "
            f"{advice} as many."
        )
    if not extrapolated:
        notes.append("FID-infinity is omitted: half of the images are not more than the feature dimension.")
    if num < FEWEST:
        notes.append(f"Precision, recall, density and coverage are omitted: fewer than {FEWEST} images.")
    return notes

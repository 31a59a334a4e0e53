"""Scoring runs of the nano suites: by extractors that no generator knows and by the world's recognisers.

Features of `nano-coco` are those of both extractors in place of an Inception's: no published FID compares with them.
What networks find is kept in the run's `features` folder; scoring a run again loads none of them, nor torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import MissingError
from kgcli.evaluation.benchmarks.nano import BASE_NOUNS, COCO, NUM_CAPTIONS, NUM_REAL, VERSION, spec_of, subjects
from kgcli.evaluation.benchmarks.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.extractors.base import Extractors, PictureExtractor
from kgcli.evaluation.extractors.cache import FOLDER, FeatureCache, hashes
from kgcli.evaluation.extractors.nano import UnitVariance, nano_extractors, one_thread
from kgcli.evaluation.metrics.recognition import SHIPPED, Recognition, Seen, choose_from
from kgcli.evaluation.metrics.subjects import COPY_INPUT, SubjectPhotos
from kgcli.evaluation.plan import Item, fingerprint
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.score import RealPictures, score_distribution, score_subjects, write_tables
from kgcli.evaluation.scores import Figure, Measure, Scores, figures_of, picture_score
from kgcli.files import make_folder, sha256, write_whole

Progress = Callable[[int], None]
Values = list[dict[str, float]]  # by measure, for each item; measures that do not apply are not there
LOOKS = "self-supervised ViT"  # what stands where DINO stands
NOTE = "A nano suite: made by the nano world and seen by its own extractors. Its numbers are none of a paper's."
RECOGNISED = (
    Measure(name="judge_picked", title="subject picked of 20 by the judge"),
    Measure(name="judge_noun", title="right noun, says the judge"),
    Measure(name="judge_scene", title="right scene, says the judge"),
    Measure(name="judge_style", title="right style, says the judge"),
    Measure(name="judge_accessory", title="worn as asked, says the judge"),
)


def score_nano(
    run: RunFolder, cache: Path, *, extractors: Extractors | None = None, progress: Progress | None = None
) -> Scores:
    """Score a run of `nano-dreambench` or `nano-coco` and write scores.json and tables into its folder.

    Args:
        cache: folder where statistics of real images are kept between runs
        extractors: where not the shipped ones

    Raises: MissingError where images, photos or weights are missing.
    """
    score = _coco if run.plan.suite == COCO else _dreambench
    seen = score(run, cache, extractors or nano_extractors(), progress)
    measures = tuple(dataclasses.replace(one, title=one.title.replace("DINO", LOOKS)) for one in seen.measures)
    scores = add_recognition(dataclasses.replace(seen, measures=measures), run.plan.items, run.path, NOTE)
    write_tables(scores, run.path)
    return scores


def add_recognition(scores: Scores, items: Sequence[Item], folder: Path, note: str) -> Scores:
    """Scores of a nano run with what the recognisers find in its images, and in the inputs in their place.

    Args:
        folder: of the run
        note: what readers of the scores must know
    """
    by_subject = scores.suite != COCO
    files = {"method": [folder / item.path for item in items]}
    if by_subject:
        files[COPY_INPUT] = [Path(scores.data) / item.inputs[0] for item in items]
    found = _recognised(items, scores.suite, files, folder / FOLDER)
    figures: tuple[Figure, ...] = ()
    for row, values in found["values"].items():
        scored = [picture_score(item, one) for item, one in zip(items, values, strict=True)]
        figures += figures_of(scored, [one.name for one in RECOGNISED], row, by_subject=by_subject)
    names = {figure.measure for figure in figures}
    of_path = dict(zip((item.path for item in items), found["values"]["method"], strict=True))
    return dataclasses.replace(
        scores,
        protocol={**scores.protocol, "judges_sha256": found["judges_sha256"]},
        notes=(note, *scores.notes),
        measures=(*scores.measures, *(measure for measure in RECOGNISED if measure.name in names)),
        figures=(*scores.figures, *figures),
        pictures=tuple(
            dataclasses.replace(one, values={**one.values, **of_path.get(one.path, {})}) for one in scores.pictures
        ),
    )


def recognise(items: Sequence[Item], suite: str, rows: Sequence[Sequence[Image.Image]], judges: Any) -> list[Values]:
    """Return what the recognisers find in one image for each item, for each of several rows of images."""
    galleries: dict[str, Any] = {}
    if suite != COCO:
        names = {item.subject for item in items}
        for order, (name, subject) in enumerate(subjects().items()):
            if name in names:
                galleries[name] = {
                    "picked": choose_from(subject, np.random.default_rng([26, VERSION, order]), BASE_NOUNS)
                }
    specs = [spec_of(item, suite) for item in items]
    recognition = Recognition(judges, specs, [galleries.get(item.subject, {}) for item in items])
    return [[_values(seen) for seen in recognition(images)] for images in rows]


def _recognised(items: Sequence[Item], suite: str, files: Mapping[str, Sequence[Path]], folder: Path) -> dict[str, Any]:
    """What `recognise` finds in files, by row, and the hash of the recognisers; from the folder where it is there."""
    weights = sha256(SHIPPED / "model.safetensors") if (SHIPPED / "model.safetensors").is_file() else ""
    asked = [dataclasses.asdict(item) for item in items]
    key = fingerprint([weights, suite, VERSION, asked, {row: hashes(of) for row, of in files.items()}])
    kept = folder / f"recognition-{key[:32]}.json"
    if kept.is_file():
        try:
            found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
            if found["key"] == key:
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: found anew
    from kgcli.model.nano_recognisers import Judges

    one_thread()
    judges = Judges.load(SHIPPED)
    values = recognise(items, suite, [[open_image(file, srgb=False) for file in of] for of in files.values()], judges)
    found = {"key": key, "judges_sha256": judges.sha256(), "values": dict(zip(files, values, strict=True))}
    make_folder(folder)
    write_whole(kept, json.dumps(found) + "\n")
    return found


def _values(seen: Seen) -> dict[str, float]:
    values = {f"judge_{head}": seen.says(head) for head in ("scene", "style")}
    values["judge_noun"] = seen.has_nouns
    if len(seen.spec.subjects) == 1:
        values["judge_accessory"] = seen.says("accessory")
    if "picked" in seen.picked:
        values["judge_picked"] = float(seen.picked["picked"][0] == 0)
    return values


def _dreambench(run: RunFolder, cache: Path, both: Extractors, progress: Progress | None) -> Scores:
    data = dreambench_data(Path(run.plan.data))
    _check(data, run)
    asked = {item.subject for item in run.plan.items}
    references = {name: SubjectPhotos(data.photos[name], data.input_of(name)) for name in data.photos if name in asked}
    return score_subjects(run.path, run.plan, references, both, data=data.folder, progress=progress, write=False)


def _coco(run: RunFolder, cache: Path, both: Extractors, progress: Progress | None) -> Scores:
    from kgcli.evaluation.metrics.distribution import DistributionExtractor

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
    from kgcli.evaluation.metrics.frechet import Reference, distance_interval
    from kgcli.evaluation.run.real_set import real_set

    rows = FeatureCache(run.path / FOLDER).pictures(extractor, [run.path / item.path for item in run.plan.items])
    low, high = distance_interval(Reference(real_set(extractor, photos, cache).moments), rows)
    return dataclasses.replace(figure, bootstrap_low=low, bootstrap_high=high)


def _check(data: NanoData, run: RunFolder) -> None:
    """Pillow of another version may render other images. Raises: MissingError."""
    if data.sha256 != run.plan.fact("data_sha256", str):
        raise MissingError(f"the pictures in {data.folder} are no longer those of the run {run.path}; put them back")

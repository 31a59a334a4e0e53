"""Scoring of the nano suites, by extractors trained apart from all generators and by the world's recognisers.

FID of `nano-coco` uses both extractors in place of an Inception and is not comparable with published FID. Features
and recognitions are cached in the run's `features` folder; rescoring loads neither networks nor torch.
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
from kgcli.evaluation.benchmarks.nano import BASE_NOUNS, COCO, NUM_CAPTIONS, NUM_REAL, SEED, spec_of, subjects
from kgcli.evaluation.benchmarks.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.benchmarks.nano_world import VERSION, NanoWeights, check_version, find_weights
from kgcli.evaluation.extractors.base import Extractors, ImageExtractor
from kgcli.evaluation.extractors.cache import FOLDER, FeatureCache, hashes
from kgcli.evaluation.extractors.nano import UnitVariance, nano_extractors
from kgcli.evaluation.extractors.processes import Processes, compute_exactly
from kgcli.evaluation.metrics.recognition import Prediction, Recognition, gallery_of
from kgcli.evaluation.metrics.subjects import COPY_INPUT, SubjectPhotos
from kgcli.evaluation.plan import Item, fingerprint
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.score import RealImages, score_distribution, score_subjects, write_tables
from kgcli.evaluation.scores import Figure, Measure, Scores, figures_of, image_score
from kgcli.files import make_folder, sha256, write_whole

Progress = Callable[[int], None]
Values = list[dict[str, float]]  # by measure, for each item; measures that do not apply are absent
BACKBONE = "self-supervised ViT"  # in place of DINO
NOTE = "A nano suite: rendered by the nano world, scored by its own extractors. Do not compare with published scores."
RECOGNISED = (
    Measure(name="judge_picked", title="subject picked of 20 (recogniser)"),
    Measure(name="judge_noun", title="right noun (recogniser)"),
    Measure(name="judge_scene", title="right scene (recogniser)"),
    Measure(name="judge_style", title="right style (recogniser)"),
    Measure(name="judge_accessory", title="right accessory (recogniser)"),
)


def score_nano(
    run: RunFolder,
    cache: Path,
    *,
    weights: NanoWeights | None = None,
    extractors: Extractors | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Scores:
    """Score a run of `nano-dreambench` or `nano-coco` and write scores.json and tables into its folder.

    Args:
        cache: folder for statistics of real images, shared between runs
        weights: instead of those that ship
        extractors: instead of those of the weights

    Raises: MissingError for missing images, photos or weights, IncompatibleError for a run or weights of another
        world.
    """
    check_version(run.plan.protocol, run.path)
    score, used = _coco if run.plan.suite == COCO else _dreambench, weights or find_weights()
    found = score(run, cache, extractors or nano_extractors(used.evaluators), progress, processes)
    measures = tuple(dataclasses.replace(one, title=one.title.replace("DINO", BACKBONE)) for one in found.measures)
    scores = dataclasses.replace(found, measures=measures)
    scores = add_recognition(scores, run.plan.items, run.path, NOTE, used.judges)
    write_tables(scores, run.path)
    return scores


def add_recognition(
    scores: Scores, items: Sequence[Item], folder: Path, note: str, judges: Path | None = None
) -> Scores:
    """Add the recognisers' scores of the images, and of the inputs as a baseline, to the scores of a nano run.

    Args:
        folder: of the run
        note: first note of the scores
        judges: folder of the recognisers, instead of those that ship
    """
    by_subject = scores.suite != COCO
    files = {"method": [folder / item.path for item in items]}
    if by_subject:
        files[COPY_INPUT] = [Path(scores.data) / item.inputs[0] for item in items]
    found = _recognised(items, scores.suite, files, folder / FOLDER, judges or find_weights().judges)
    figures: tuple[Figure, ...] = ()
    for row, values in found["values"].items():
        scored = [image_score(item, one) for item, one in zip(items, values, strict=True)]
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


def recognise(
    items: Sequence[Item],
    suite: str,
    rows: Sequence[Sequence[Image.Image]],
    recognisers: Any,
) -> list[Values]:
    """Return the recognisers' scores of each row of images, one image per item."""
    galleries: dict[str, Any] = {}
    if suite != COCO:
        names = {item.subject for item in items}
        for order, (name, subject) in enumerate(subjects().items()):
            if name in names:
                galleries[name] = {"picked": gallery_of(subject, np.random.default_rng([26, SEED, order]), BASE_NOUNS)}
    specs = [spec_of(item, suite) for item in items]
    recognition = Recognition(recognisers, specs, [galleries.get(item.subject, {}) for item in items])
    return [[_values(one) for one in recognition(images)] for images in rows]


def _recognised(
    items: Sequence[Item], suite: str, files: Mapping[str, Sequence[Path]], folder: Path, judges: Path
) -> dict[str, Any]:
    """Return the scores of `recognise` by row and the recognisers' hash, cached in the folder."""
    weights = sha256(judges / "model.safetensors") if (judges / "model.safetensors").is_file() else ""
    fields = [dataclasses.asdict(item) for item in items]
    key = fingerprint([weights, suite, VERSION, fields, {row: hashes(of) for row, of in files.items()}])
    kept = folder / f"recognition-{key[:32]}.json"
    if kept.is_file():
        try:
            found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
            if found["key"] == key:
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: recomputed
    from kgcli.model.nano_recognisers import Recognisers

    compute_exactly("cpu")
    recognisers = Recognisers.load(judges)
    rows = [[open_image(file, srgb=False) for file in of] for of in files.values()]
    values = recognise(items, suite, rows, recognisers)
    found = {"key": key, "judges_sha256": recognisers.sha256(), "values": dict(zip(files, values, strict=True))}
    make_folder(folder)
    write_whole(kept, json.dumps(found) + "\n")
    return found


def _values(prediction: Prediction) -> dict[str, float]:
    values = {f"judge_{head}": prediction.correct(head) for head in ("scene", "style")}
    values["judge_noun"] = prediction.has_nouns
    if len(prediction.spec.subjects) == 1:
        values["judge_accessory"] = prediction.correct("accessory")
    if "picked" in prediction.picked:
        values["judge_picked"] = float(prediction.picked["picked"][0] == 0)
    return values


def _dreambench(
    run: RunFolder, cache: Path, both: Extractors, progress: Progress | None, processes: Processes | None
) -> Scores:
    data = dreambench_data(Path(run.plan.data))
    _check(data, run)
    names = {item.subject for item in run.plan.items}
    references = {name: SubjectPhotos(data.photos[name], data.input_of(name)) for name in data.photos if name in names}
    return score_subjects(
        run.path,
        run.plan,
        references,
        both,
        data=data.folder,
        progress=progress,
        processes=processes,
        write=False,
    )


def _coco(
    run: RunFolder, cache: Path, both: Extractors, progress: Progress | None, processes: Processes | None
) -> Scores:
    from kgcli.evaluation.metrics.distribution import DistributionExtractor

    data = coco_data(Path(run.plan.data), _num_real(run))
    _check(data, run)
    photos = [data.folder / photo for photo in data.photos[""]]
    real = RealImages(files=photos, cache=cache, num_reference=NUM_CAPTIONS)
    features = {f"fid_{one.name}": UnitVariance(one) for one in (both.clip, both.dino)}
    presets = [DistributionExtractor(one.name, one, one) for one in features.values()]
    scores = score_distribution(
        run.path, run.plan, real, presets, clip=both.clip, progress=progress, processes=processes, write=False
    )
    figures = tuple(
        _with_interval(figure, run, photos, features[figure.measure], cache) if figure.measure in features else figure
        for figure in scores.figures
    )
    return dataclasses.replace(scores, figures=figures)


def _num_real(run: RunFolder) -> int:
    """Return the size of the run's real set. Raises: MissingError."""
    num = run.plan.protocol_value("num_real", int)
    if not 2 <= num <= NUM_REAL:
        raise MissingError(f"the plan of {run.path} is damaged: protocol.num_real is {num}; it must be 2 to {NUM_REAL}")
    return num


def _with_interval(
    figure: Figure, run: RunFolder, photos: Sequence[Path], extractor: ImageExtractor, cache: Path
) -> Figure:
    from kgcli.evaluation.metrics.frechet import Reference, distance_interval
    from kgcli.evaluation.run.real_set import real_set

    rows = FeatureCache(run.path / FOLDER).images(extractor, [run.path / item.path for item in run.plan.items])
    low, high = distance_interval(Reference(real_set(extractor, photos, cache).moments), rows)
    return dataclasses.replace(figure, bootstrap_low=low, bootstrap_high=high)


def _check(data: NanoData, run: RunFolder) -> None:
    """Check that the photos are those of the run; another Pillow may render others. Raises: MissingError."""
    if data.sha256 != run.plan.protocol_value("data_sha256", str):
        raise MissingError(f"the images in {data.folder} differ from those of the run {run.path}; restore them")

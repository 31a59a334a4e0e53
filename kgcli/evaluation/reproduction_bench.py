"""The nano twins as what reproductions measure rows with: plan, drawing, scores of extractors and judges."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kgcli.evaluation.benchmark import method_facts
from kgcli.evaluation.distribution import DistributionExtractor
from kgcli.evaluation.drawing import draw_run, finish
from kgcli.evaluation.extractors import Extractors, PictureExtractor
from kgcli.evaluation.featurecache import FOLDER, FeatureCache
from kgcli.evaluation.frechet import Moments, Reference
from kgcli.evaluation.judges import Judges
from kgcli.evaluation.methods.base import Method
from kgcli.evaluation.methods.table import make
from kgcli.evaluation.nano import SHIPPED_JUDGES
from kgcli.evaluation.nano_data import NanoData, coco_data, dreambench_data
from kgcli.evaluation.nano_extractors import SHIPPED, nano_extractors
from kgcli.evaluation.nano_judging import add_judges
from kgcli.evaluation.nano_suites import (
    COCO,
    DRAWING,
    NUM_CAPTIONS,
    NUM_IMAGES,
    NUM_REAL,
    NanoAsk,
    coco_plan,
    dreambench_plan,
)
from kgcli.evaluation.realset import real_set
from kgcli.evaluation.reproduction import Job, Reproduction, minutes_file, reproduce
from kgcli.evaluation.reproduction_table import write_table
from kgcli.evaluation.runs import SCORES, Plan, RunFolder
from kgcli.evaluation.scores import Figure, Scores
from kgcli.evaluation.scoring_runs import RealPictures, score_distribution, score_subjects
from kgcli.evaluation.subjects import SubjectPhotos
from kgcli.output import write_bytes
from kgcli.train import train

PRESET = "nano"  # FID on the features of evaluation's CLIP, which know things and scenes as Inception's do
NUM_RESAMPLES = 400


class NanoBench:
    """Draws and scores rows; a run that is scored is read, not drawn again."""

    def __init__(self, data: Path, extractors: Extractors, judges: Judges, num_real: int = NUM_REAL) -> None:
        self.folder = data
        self.extractors = extractors
        self.judges = judges
        self.num_real = num_real  # true pictures that captions are compared with

    @classmethod
    def open(cls, data: Path, weights: Path | None = None) -> NanoBench:
        """With the shipped judges, and extractors that are shipped or in a folder. Raises: MissingError."""
        return cls(data, nano_extractors(weights or SHIPPED), Judges.load(SHIPPED_JUDGES))

    def __call__(self, job: Job) -> Scores:
        """The scores of a row and seed. Raises: UsageError where its folder holds what was asked otherwise."""
        drawing = {name: value for name, value in DRAWING.items() if getattr(job.options, name) is None}
        method = make(job.row.method, dataclasses.replace(job.options, **drawing))
        folder = self.folder / job.suite
        data = coco_data(folder, self.num_real) if job.suite == COCO else dreambench_data(folder)
        run = RunFolder.start(job.out, self.plan(job, data, method))
        if (run.path / SCORES).is_file():
            return Scores.read(run.path)
        print(f"{job.row.title}, seed {job.seed}: {len(run.missing())} pictures to draw", file=sys.stderr, flush=True)
        start = time.monotonic()
        draw_run(run, method)
        _add_minutes(minutes_file(job.out), (time.monotonic() - start) / 60)
        finish(run)
        scores = self._of_captions(run, data) if job.suite == COCO else self._of_subjects(run, data)
        scores = add_judges(scores, run.plan.items, run.path, self.judges)
        scores.write(run.path)
        return scores

    def plan(self, job: Job, data: NanoData, method: Method) -> Plan:
        """What a row is asked for."""
        facts = method_facts(method, job.row.method)
        if job.suite == COCO:
            num = job.num or NUM_CAPTIONS
            return coco_plan(data.sha256, data.folder, num, job.seed, facts, self.num_real)
        ask = NanoAsk(seed=job.seed, num_images=job.num_images or NUM_IMAGES, subjects=job.subjects)
        return dreambench_plan(data.sha256, data.folder, ask, facts)

    def _of_subjects(self, run: RunFolder, data: NanoData) -> Scores:
        photos = {name: SubjectPhotos(files, data.input_of(name)) for name, files in data.photos.items()}
        asked = {item.subject for item in run.plan.items}
        references = {name: one for name, one in photos.items() if name in asked}
        return score_subjects(run.path, run.plan, references, self.extractors, out=_work(run))

    def _of_captions(self, run: RunFolder, data: NanoData) -> Scores:
        clip = self.extractors.clip
        files = [data.folder / name for name in data.photos[""]]
        real = RealPictures(files=files, cache=self.folder / "statistics", num_reference=NUM_CAPTIONS)
        presets = [
            DistributionExtractor(PRESET, clip, clip),
            DistributionExtractor(f"{PRESET}-dino", self.extractors.dino, self.extractors.dino),
        ]
        scores = score_distribution(run.path, run.plan, real, presets, clip=clip, out=_work(run))
        fakes = {f"fid_{preset.name}": preset.fake for preset in presets}
        figures = tuple(
            self._with_interval(figure, run, files, fakes[figure.measure]) if figure.measure in fakes else figure
            for figure in scores.figures
        )
        return dataclasses.replace(scores, figures=figures)

    def _with_interval(
        self, figure: Figure, run: RunFolder, real: Sequence[Path], extractor: PictureExtractor
    ) -> Figure:
        files = [run.path / item.path for item in run.plan.items]
        rows = FeatureCache(_work(run) / FOLDER).pictures(extractor, files)
        reference = Reference(real_set(extractor, real, self.folder / "statistics").moments)
        low, high = distance_interval(reference, rows)
        return dataclasses.replace(figure, low=low, high=high)


def run(ask: Reproduction, weights: Path | None = None) -> str:
    """Reproduce a table; returns it as Markdown. Raises: KgError."""
    bench = NanoBench.open(ask.out / "data", weights)  # before anything is trained
    return write_table(ask, reproduce(ask, train, bench))


def distance_interval(reference: Reference, rows: NDArray[np.float32]) -> tuple[float, float]:
    """The 95 % interval of a Frechet distance at this number of pictures, by resampling them; a function of them.

    Resampled sets repeat pictures, so their distances lie higher than the set's own; that shift is taken off. The bias
    of a distance of so many pictures is not: it is the same for all rows.
    """
    rng = np.random.default_rng(0)
    value = reference.distance(Moments.of(rows))
    resampled = [
        reference.distance(Moments.of(rows[rng.integers(len(rows), size=len(rows))])) for _ in range(NUM_RESAMPLES)
    ]
    shifted = np.asarray(resampled) - (np.mean(resampled) - value)
    low, high = np.quantile(shifted, [0.025, 0.975])
    return max(float(low), 0.0), float(high)


def _work(run: RunFolder) -> Path:
    """Where scoring keeps vectors and its own scores: those of the run are written once, with the judges'."""
    return run.path / "scoring"


def _add_minutes(path: Path, minutes: float) -> None:
    """Add to what earlier, interrupted calls took."""
    before = float(json.loads(path.read_text("utf-8"))["minutes"]) if path.is_file() else 0.0
    write_bytes(path, (json.dumps({"minutes": before + minutes}) + "\n").encode())

"""Scored runs with random figures and small drawn pictures: what the page and the comparison read."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kgcli.evaluation.metrics.intervals import cluster_mean
from kgcli.evaluation.plan import Item, Plan
from kgcli.evaluation.report.compare import cluster_means, values_of
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import Figure, ImageScore, Measure, Scores

SUBJECTS = ("dog", "cat", "backpack", "rc_car", "berry_bowl", "can", "clock", "vase")
LIVE = ("dog", "cat")
PROMPTS = (
    ("in the jungle", "context"),
    ("on the beach", "context"),
    ("wearing a red hat", "accessory"),
    ("red", "attribute"),
)
MEASURES = (
    Measure(name="dino_input", title="DINO (input)", primary=True),
    Measure(name="clip_i_input", title="CLIP-I (input)", primary=True),
    Measure(name="clip_t", title="CLIP-T", primary=True),
    Measure(name="dino_all", title="DINO (all)"),
)
FID = (
    Measure(name="fid", title="FID", higher_is_better=False, primary=True),
    Measure(name="kid", title="KID", higher_is_better=False, primary=True),
    Measure(name="clip_t", title="CLIP-T"),
)
VERSIONS = {"kgcli": "1.0.0", "torch": "2.15.0"}
PROTOCOL = {
    "num_steps": 100,
    "guidance_scale": 7.5,
    "noise": "independent",
    "extractors": {"dino": {"sha256": "ab" * 32}},
}


def make_subject_run(
    folder: Path,
    *,
    seed: int = 0,
    suite: str = "nano-dreambench",
    subjects: tuple[str, ...] = SUBJECTS,
    num_images: int = 4,
    shift: float = 0.0,
    size: int = 64,
    protocol: dict | None = None,
    pictures: bool = True,
) -> Scores:
    """A run of a suite of subjects: plan, pictures, inputs and scores below `folder`."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(7)  # the same subjects are hard in all runs
    data = folder.parent / "data"
    items, scored = [], []
    for subject in subjects:
        base = hard.normal(0, 0.05) + shift
        if pictures:
            _draw(data / subject / "00.png", subject, 0, size)
        for (number, (words, kind)), image in itertools.product(enumerate(PROMPTS), range(num_images)):
            item = _item(subject, number, image, words, kind)
            items.append(item)
            if pictures:
                _draw(folder / item.path, subject, 1 + number, size)
            values = {
                one.name: float(np.clip(centre + base + rng.normal(0, 0.06), -1, 1))
                for one, centre in zip(MEASURES, (0.69, 0.84, 0.28, 0.6), strict=True)
            }
            scored.append(_score(item, values))
    plan = Plan(
        suite=suite, protocol=protocol or PROTOCOL, method={"name": "kosmosg"}, data=str(data), items=tuple(items)
    )
    RunFolder.start(folder, plan) if not folder.exists() else (folder / "plan.json").write_text(plan.to_json())
    scores = Scores(
        suite=suite,
        protocol=plan.protocol,
        method={"name": "kosmosg", "weights": {"sha256": "cd" * 32}},
        versions=VERSIONS,
        data=str(data),
        measures=MEASURES,
        figures=tuple(_figures(scored)),
        pictures=tuple(scored),
        notes=("Copy rate: fraction of images with DINO (input) > 0.95.",),
    )
    scores.write(folder)
    return scores


def make_caption_run(folder: Path, *, seed: int = 0, num: int = 40, size: int = 64) -> Scores:
    """A run of a suite of captions: no subjects and no inputs, a distance between distributions."""
    rng = np.random.default_rng(seed)
    scored = []
    for number in range(num):
        path = f"images/{number:06d}.png"
        _draw(folder / path, "coco", number, size)
        values = {"clip_t": float(rng.normal(0.27, 0.03))}
        text = f"A caption <b>number</b> {number} & more"
        scored.append(
            ImageScore(path=path, subject="", prompt=number, image=0, scored_text=text, inputs=(), values=values)
        )
    mean = float(np.mean([one.values["clip_t"] for one in scored]))
    figures = [
        Figure(
            measure="fid", value=10.99 + seed, bootstrap_low=10.5 + seed, bootstrap_high=11.6 + seed, num_pictures=num
        ),
        Figure(measure="fid", value=1.25, row="real against real", num_pictures=num),
        Figure(measure="kid", value=0.0031, low=0.0026, high=0.0036, num_pictures=num),
        Figure(measure="clip_t", value=mean, num_pictures=num),
    ]
    scores = Scores(
        suite="coco",
        protocol={"captions": "kosmosg", "num": num, "preset": "kosmosg"},
        method={"name": "sd"},
        versions=VERSIONS,
        data=str(folder.parent),
        measures=FID,
        figures=tuple(figures),
        pictures=tuple(scored),
    )
    scores.write(folder)
    return scores


def rewrite(folder: Path, scores: Scores, **changes) -> Scores:
    """The scores of a folder, changed."""
    changed = dataclasses.replace(scores, **changes)
    changed.write(folder)
    return changed


def _item(subject: str, number: int, image: int, words: str, kind: str) -> Item:
    read = f"<image>, {words}" if kind == "attribute" else f"<image> {words}"
    return Item(
        path=f"images/{subject}/{number:02d}_{image}.png",
        unit=f"{subject}-{number}",
        subject=subject,
        prompt=number,
        image=image,
        input_text=read,
        scored_text=f"a {words} {subject}" if kind == "attribute" else f"a {subject} {words}",
        inputs=(f"{subject}/00.png",),
        seed=image,
        category="live" if subject in LIVE else "object",
        kind=kind,
    )


def _score(item: Item, values: dict[str, float]) -> ImageScore:
    names = ("path", "subject", "prompt", "image", "scored_text", "inputs", "category", "kind")
    return ImageScore(**{name: getattr(item, name) for name in names}, values=values)


def _figures(scored: list[ImageScore]) -> list[Figure]:
    figures = []
    for measure in MEASURES:
        groups = {"all": scored}
        for one in scored:
            for group in (f"subject:{one.subject}", f"category:{one.category}", f"kind:{one.kind}"):
                groups.setdefault(group, []).append(one)
        figures += [_figure(measure.name, group, some) for group, some in groups.items()]
        figures.append(Figure(measure=measure.name, value=0.774, row="oracle", num_subjects=8))
        if measure.name != "clip_t":
            figures.append(Figure(measure=measure.name, value=1.0, row="copy-input", num_subjects=8))
    return figures


def _figure(measure: str, group: str, some: list[ImageScore]) -> Figure:
    mean = cluster_mean(list(cluster_means(values_of(measure, some)).values()))
    return Figure(
        measure=measure,
        value=mean.value,
        group=group,
        low=mean.low,
        high=mean.high,
        bootstrap_low=mean.bootstrap_low,
        bootstrap_high=mean.bootstrap_high,
        num_subjects=mean.num,
        num_pictures=len(some),
    )


def _draw(path: Path, subject: str, number: int, size: int) -> None:
    """A coloured shape on a coloured ground, one look for each subject."""
    hue = (sum(map(ord, subject)) * 37) % 256
    image = Image.new("HSV", (size, size), ((hue + 40 * number) % 256, 60, 235))
    box = (size // 5, size // 4 - number % 3, size * 4 // 5, size * 4 // 5)
    (ImageDraw.Draw(image).ellipse if hue % 2 else ImageDraw.Draw(image).rectangle)(box, fill=(hue, 180, 170))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)

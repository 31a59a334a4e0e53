"""A small run of three subjects, and an extractor that needs no weights: what scoring is tested with."""

import shutil

import numpy as np
from PIL import Image, ImageDraw

from kgcli.evaluation.metrics.subjects import SubjectPhotos
from kgcli.evaluation.plan import Item, Plan

SUBJECTS = {"cat": ("live", "orange"), "dog": ("live", "brown"), "can": ("object", "blue")}
PROMPTS = (("on the beach", "context"), ("in a hat", "accessory"))


class Colours:
    """Looks: each picture is its histogram of colours. Words: those of a few colours. No network, real numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_seen = 0

    def facts(self):
        return {"extractor": self.name, "architecture": "64 colours", "weights_sha256": "none"}

    def images(self, images):
        self.num_seen += len(images)
        rows = []
        for image in images:
            bins = (np.asarray(image) // 64).astype(int) @ [16, 4, 1]
            rows.append(np.bincount(bins.ravel(), minlength=64) + 1.0)
        return _unit(rows)

    def texts(self, texts):
        return self.images([Image.new("RGB", (4, 4), SUBJECTS[text.split()[1]][1]) for text in texts])


def _unit(rows):
    rows = np.array(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw(colour, seed, size=24) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(190, 256, (size, size, 3), np.uint8))
    left, top = rng.integers(0, size // 2, 2)
    ImageDraw.Draw(image).rectangle((left, top, left + size // 2, top + size // 2), fill=colour)
    return image


def build_run(root, *, copying=False, images=2) -> tuple[Plan, dict[str, SubjectPhotos]]:
    """Photos of three subjects, and pictures that are of them or copies of the input."""
    references, items = {}, []
    for place, (subject, (category, colour)) in enumerate(SUBJECTS.items()):
        (root / "data" / subject).mkdir(parents=True)
        for number in range(3):
            draw(colour, 10 * place + number).save(root / "data" / subject / f"{number}.png")
        photos = tuple(f"{subject}/{number}.png" for number in range(3))
        references[subject] = SubjectPhotos(photos, photos[1])
        for prompt, (where, kind) in enumerate(PROMPTS):
            for image in range(images):
                item = Item(
                    path=f"images/{subject}/{prompt:02d}_{image}.png",
                    unit=f"{subject}/{prompt}",
                    subject=subject,
                    prompt=prompt,
                    image=image,
                    input_text=f"<image> {where}",
                    scored_text=f"a {subject} {where}",
                    inputs=(photos[1],),
                    seed=0,
                    category=category,
                    kind=kind,
                )
                items.append(item)
                target = root / "run" / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if copying:
                    shutil.copy(root / "data" / photos[1], target)
                else:
                    draw(colour, 1000 + len(items)).save(target)
    plan = Plan(
        suite="nano-test", protocol={"steps": 2}, method={"name": "m"}, data=str(root / "data"), items=tuple(items)
    )
    return plan, references

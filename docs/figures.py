"""Make the figures of README with the small model that ships: references beside outputs, true renders for comparison.

Run: python docs/figures.py    (about a minute on two cores; every seed is fixed, nothing is selected)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import kgcli
from kgcli.world.examples import example_spec
from kgcli.world.spec import render

HERE = Path(__file__).resolve().parent
EXAMPLE_IMAGES = HERE.parent / "recipes" / "nano"
CELL = 160  # pixels of an image in the figure
GAP = 10
CAPTION = 34
SEED = 0


@dataclass(frozen=True)
class Case:
    """One output of the figure: a prompt, its reference images, and further options."""

    prompt: str
    images: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


ROWS: list[list[Case]] = [
    [
        Case("<image:-1> on the beach", ("cat",)),
        Case("<image:-1> in the snow", ("cat",)),
        Case("<image:-1> in Minecraft", ("cat",)),
        Case("<image:-1> as a watercolor", ("cat",)),
    ],
    [
        Case("<image:-1> in the forest", ("owl",)),
        Case("<image:-1> in the city", ("fox",)),
        Case("<image:-1> and <image:-2> on the beach", ("dog", "robot")),
        Case("<image:-1> add a hat", ("dog",)),
    ],
    [
        Case("<image:-1> in the desert", ("car",)),
        Case("<image:-1> on a wooden floor", ("teapot",), {"controls": [f"canny={EXAMPLE_IMAGES}/teapot.png"]}),
        Case("<image:-1> in the snow", ("robot",), {"loras": ["nano/comic"]}),
        Case("a red robot in front of a brick wall"),
    ],
]
NOTES = {"controls": " (ControlNet)", "loras": " (LoRA)"}


def main() -> None:
    """Generate every case and write `images/overview.png` and `images/true.png`."""
    model = kgcli.load(device="cpu")
    rows = [[_pair(model, case) for case in row] for row in ROWS]
    _grid(rows).save(HERE / "images" / "overview.png")
    _true_renders().save(HERE / "images" / "true.png")


def _pair(model: Any, case: Case) -> tuple[Image.Image, str]:
    """Return the references of a case beside its output, and its caption."""
    paths = [str(EXAMPLE_IMAGES / f"{name}.png") for name in case.images]
    (output,) = model.generate(case.prompt, images=paths, seed=SEED, **case.options)
    words = case.prompt
    for number, name in enumerate(case.images, start=1):
        words = words.replace(f"<image:-{number}>", f"[{name}]")
    words += "".join(note for name, note in NOTES.items() if name in case.options)
    return _beside([Image.open(path) for path in paths], output), words


def _beside(references: list[Image.Image], output: Image.Image) -> Image.Image:
    """Return small references in a column at the left of a large output."""
    small = (CELL - GAP // 2) // 2
    pair = Image.new("RGB", (CELL + small + GAP // 2, CELL), "white")
    for number, reference in enumerate(references):
        pair.paste(reference.convert("RGB").resize((small, small), Image.Resampling.LANCZOS), (0, number * (small + 5)))
    pair.paste(output.resize((CELL, CELL), Image.Resampling.BICUBIC), (small + GAP // 2, 0))
    return pair


def _grid(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    font = ImageFont.load_default(13)
    width, height = rows[0][0][0].width + GAP, CELL + CAPTION
    sheet = Image.new("RGB", (width * len(rows[0]) + GAP, height * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        for across, (image, words) in enumerate(row):
            left, top = GAP + across * width, GAP + down * height
            sheet.paste(image, (left, top))
            draw.text((left, top + CELL + 4), words, "#222222", font)
    return sheet


def _true_renders() -> Image.Image:
    """Return the first row rendered by the world at the model's size, as a perfect model would generate it."""
    cat = example_spec("cat.png")
    scenes = (("beach", "photo"), ("snow", "photo"), ("forest", "minecraft"), ("city", "watercolor"))
    specs = [replace(cat, scene=scene, style=style) for scene, style in scenes]
    renders = [(_beside([], render(spec).image), f"true render: {spec.scene}, {spec.style}") for spec in specs]
    return _grid([renders])


if __name__ == "__main__":
    main()

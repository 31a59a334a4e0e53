"""Make the figures of README with a small model: references beside outputs, and true renders for comparison.

Run: python docs/figures.py    (a minute or two on two cores; every prompt and seed is fixed, nothing is selected)

For another model: python docs/figures.py --model FOLDER --out FOLDER [--controlnet FOLDER --lora FILE]. Without
adapters of its own the row of adapters is left out.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import kgcli
from kgcli.evaluation.baselines.world import Reconstruction
from kgcli.world.examples import example_spec
from kgcli.world.rendering import render

HERE = Path(__file__).resolve().parent
SEED = 0
# Pixels; a page shows the figures at about half of their size.
CELL, SMALL, GAP = 256, 124, 20
TITLE, LINE, LETTERS = 46, 30, 31  # height of a title and of a line of a caption; letters in a line
NUM_LINES = 2


@dataclass(frozen=True)
class Case:
    """One output: a prompt whose `[name]` stand for example images, and the adapters it is generated with."""

    prompt: str
    adapters: dict[str, str] = field(default_factory=dict)  # kind -> the example image of its map, or "" for a LoRA

    @property
    def names(self) -> list[str]:
        """The example images of the prompt, in order."""
        return [part.partition("]")[0] for part in self.prompt.split("[")[1:]]

    @property
    def caption(self) -> str:
        """The prompt, and with what it was generated."""
        notes = {"canny": "ControlNet", "lora": "LoRA"}
        return self.prompt + "".join(f" ({notes[kind]})" for kind in self.adapters)


SECTIONS = {
    "Scenes": ["[cat] on the beach", "[cat] in the snow", "[owl] in the city", "[fox] in the forest"],
    "Styles": ["[cat] in Minecraft", "[cat] as a watercolor", "[dog] as an oil painting", "[car] in Minecraft"],
    "Edits": ["[dog] add a hat", "[robot] put it on the beach", "[fox] make it green", "[owl] give it a crown"],
    "Two subjects": [
        "[dog] and [robot] on the beach",
        "[cat] and [teapot] in the forest",
        "[fox] and [owl] in the snow",
        "[car] and [robot] in the city",
    ],
    "Text alone": [
        "a red robot in front of a brick wall",
        "a blue whale in the ocean",
        "a pink castle in the mountains",
        "a green frog wearing a crown",
    ],
}
ADAPTERS = [
    Case("[teapot] on a wooden floor", {"canny": "teapot"}),
    Case("[cat] in the desert", {"canny": "dog"}),
    Case("[robot] in the snow", {"lora": ""}),
    Case("[owl] in the forest", {"lora": ""}),
]
# Prompts whose images the world can render, so that the model's can be compared with them -> scene and style.
KNOWN = {
    "[cat] on the beach": ("beach", "photo"),
    "[dog] in the snow": ("snow", "photo"),
    "[robot] in the forest in Minecraft": ("forest", "minecraft"),
    "[car] in the city as a watercolor": ("city", "watercolor"),
}

Cell = tuple[Image.Image, str]


class Studio:
    """A model and its adapters."""

    def __init__(self, folder: str | None, controlnet: str | None, lora: str | None) -> None:
        self.model = kgcli.load(folder, device="cpu")
        self.controlnet, self.lora = controlnet, lora
        if folder is None:
            self.controlnet, self.lora = controlnet or "nano/canny", lora or "nano/comic"

    def path(self, name: str) -> str:
        """Return the path of an example image."""
        return str(HERE.parent / "recipes" / "nano" / f"{name}.png")

    def generate(self, case: Case) -> Image.Image:
        """Generate the output of a case."""
        prompt = case.prompt
        for number, name in enumerate(case.names, start=1):
            prompt = prompt.replace(f"[{name}]", f"<image:-{number}>", 1)
        more: dict[str, Any] = {}
        if "canny" in case.adapters:
            more = {"controlnet": f"canny={self.path(case.adapters['canny'])}"}
            more["controlnet_model"] = f"canny={self.controlnet}"
        if "lora" in case.adapters:
            more = {"lora": self.lora}
        (output,) = self.model.generate(prompt, image=[self.path(name) for name in case.names], seed=SEED, **more)
        return output

    def pair(self, case: Case) -> Cell:
        """Return the references of a case beside its output, and its caption."""
        shown = [*case.names, *(f"{name}" for kind, name in case.adapters.items() if kind == "canny")]
        references = [Image.open(self.path(name)) for name in dict.fromkeys(shown)]
        return beside(references, self.generate(case)), case.caption


def main() -> None:
    """Generate every case and write `overview.png` and `true.png`."""
    parser = argparse.ArgumentParser(description="Make the figures of README.")
    parser.add_argument("--model", help="model folder; default: the one that ships")
    parser.add_argument("--controlnet", help="ControlNet folder of its decoder")
    parser.add_argument("--lora", help="LoRA file of its decoder")
    parser.add_argument("--out", type=Path, default=HERE / "images", help="folder to write")
    args = parser.parse_args()
    studio = Studio(args.model, args.controlnet, args.lora)
    rows = {title: [studio.pair(Case(prompt)) for prompt in prompts] for title, prompts in SECTIONS.items()}
    chosen = [case for case in ADAPTERS if (studio.controlnet if "canny" in case.adapters else studio.lora)]
    if chosen:
        rows["Adapters"] = [studio.pair(case) for case in chosen]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, shown in (("overview", sheet(rows)), ("true", sheet(compared(studio)))):
        # 256 colours: a third of the bytes, in a file that changes with every model.
        shown.quantize(256, dither=Image.Dither.NONE).save(args.out / f"{name}.png", optimize=True)


def compared(studio: Studio) -> dict[str, list[Cell]]:
    """Return outputs, what a perfect model would generate, and what is left of that by the VAE alone."""
    shown = [example_spec(f"{Case(prompt).names[0]}.png") for prompt in KNOWN]
    specs = [
        replace(spec, scene=scene, style=style) for spec, (scene, style) in zip(shown, KNOWN.values(), strict=True)
    ]
    truth = [render(spec).image for spec in specs]
    rebuilt = Reconstruction.of(Given(truth), studio.model).draw([], HERE, HERE)
    alone = lambda images: [(beside([], image), prompt) for image, prompt in zip(images, KNOWN, strict=True)]  # noqa: E731
    return {
        "Generated": [studio.pair(Case(prompt)) for prompt in KNOWN],
        "True renders": alone(truth),
        "True renders through the VAE": alone(rebuilt),
    }


class Given:
    """Images in memory as a method."""

    name = "given"

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def draw(self, *_: Any) -> list[Image.Image]:
        """Return the images."""
        return self.images


def beside(references: list[Image.Image], output: Image.Image) -> Image.Image:
    """Return small references in a column at the left of a large output."""
    pair = Image.new("RGB", (SMALL + 8 + CELL, CELL), "white")
    for number, reference in enumerate(references):
        small = reference.convert("RGB").resize((SMALL, SMALL), Image.Resampling.LANCZOS)
        pair.paste(small, (0, number * (SMALL + 8)))
    pair.paste(output.resize((CELL, CELL), Image.Resampling.BICUBIC), (SMALL + 8, 0))
    return pair


def sheet(rows: dict[str, list[Cell]]) -> Image.Image:
    """Return rows of images, each with its title above and captions below."""
    width, height = SMALL + 8 + CELL + GAP, TITLE + CELL + NUM_LINES * LINE + 14
    columns = max(len(cells) for cells in rows.values())
    image = Image.new("RGB", (width * columns + GAP, height * len(rows) + GAP // 2), "white")
    draw = ImageDraw.Draw(image)
    title, small = ImageFont.load_default(28), ImageFont.load_default(24)
    for down, (name, cells) in enumerate(rows.items()):
        top = down * height
        draw.text((GAP, top + 8), name, "#111111", title)
        for across, (cell, words) in enumerate(cells):
            left = GAP + across * width
            image.paste(cell, (left, top + TITLE))
            lines = "\n".join(textwrap.wrap(words, LETTERS)[:NUM_LINES])
            draw.multiline_text((left, top + TITLE + CELL + 6), lines, "#333333", small, spacing=5)
    return image


if __name__ == "__main__":
    main()

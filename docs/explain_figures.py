"""Make the figures of docs/explain.md with the small model that ships.

Run: python docs/explain_figures.py    (about half a minute on two cores; every seed is fixed, nothing is selected)
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from kgcli import engine
from kgcli.inference.explain.page import enlarged, overlays, region_image
from kgcli.inference.request import make_request

IMAGES = Path(__file__).resolve().parent / "images"
SIDE = 160  # pixels of a figure
COLOURS = 128  # of a figure's palette
SEED = 0
CASES = (("dog", "robot", "on the beach"), ("cat", "teapot", "in the snow"), ("owl", "car", "in the city"))


def main() -> None:
    """Write the image beside its regions, and one overlay per reference, of every case."""
    model = engine.load(device="cpu")
    for first, second, scene in CASES:
        text = f"<image:nano/{first}.png> and <image:nano/{second}.png> {scene}"
        explanation = engine.explain(model, make_request(model.folder, text, seed=SEED), words=False)
        pair = Image.new("RGB", (2 * SIDE + 8, SIDE), "white")
        for number, image in enumerate((enlarged(explanation.image), region_image(explanation))):
            pair.paste(_small(image), (number * (SIDE + 8), 0))
        _save(pair, f"explain-{first}-{second}.png")
        for number, one in enumerate(overlays(explanation), start=1):
            _save(_small(one.image), f"explain-{first}-{second}-{number}.png")


def _small(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _save(image: Image.Image, name: str) -> None:
    image.quantize(COLOURS).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()

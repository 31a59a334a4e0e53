"""The example data set that ships in recipes/example-data: images of the nano world as a user's own files.

Rebuild it with `python -m kgcli.data.sources.examples recipes/example-data`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from kgcli.data.prompt import ImageRef, Prompt
from kgcli.data.sample import Sample
from kgcli.data.sources.world import draw
from kgcli.world.tables import SIZE

SEED = 5050
NUM_PROMPTS = 30  # lines of prompts.jsonl: images and words, and the image to be generated
NUM_PHOTOS = 20  # images of photos/, each with its caption in a .txt file beside it


def write_examples(folder: Path) -> None:
    """Write prompts.jsonl with its images, and photos/ with its captions."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "photos").mkdir(exist_ok=True)
    lines = []
    for number in range(NUM_PROMPTS):
        sample = draw({"compositional": 0.6, "edit": 0.4}, SEED, number, SIZE)
        lines.append(json.dumps(_write_prompt(folder, f"images/{number:02d}", sample)))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for number in range(NUM_PHOTOS):
        sample = draw({"caption": 1.0}, SEED + 1, number, SIZE)
        _save(sample.render(SIZE).image, folder / f"photos/{number:02d}.jpg")
        (folder / f"photos/{number:02d}.txt").write_text(sample.caption + "\n", "utf-8")


def _write_prompt(folder: Path, name: str, sample: Sample) -> dict[str, str]:
    """Write the images of a sample under a name; return its line."""
    parts: list[str | ImageRef] = []
    for fragment in sample.fragments:
        if fragment is not None:
            parts.append(fragment)
            continue
        place = sum(isinstance(part, ImageRef) for part in parts)
        parts.append(ImageRef(path=f"{name}-{place + 1}.jpg"))
        _save(sample.images[place], folder / f"{name}-{place + 1}.jpg")
    _save(sample.render(SIZE).image, folder / f"{name}.jpg")
    return {"prompt": Prompt(tuple(parts)).format(), "target": f"{name}.jpg"}


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, quality=92)


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))

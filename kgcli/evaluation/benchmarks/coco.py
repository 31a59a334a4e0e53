"""COCO as a plan: the captions and how they are chosen, since the choice changes FID.

    published   random.seed(0); random.sample(annotations, 30000), annotations in the order of the file
    one         the first caption of each image, sampled in the same way
    FILE        one caption a line; or .jsonl, .json, .csv, .tsv with a field `caption`; all of them in order

Source: COCO (arXiv:1405.0312), captions_val2014.json; the sample of the published evaluation of KOSMOS-G.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.config import SamplingConfig
from kgcli.data.textfiles import read_entries
from kgcli.errors import KgError, MissingError, UsageError
from kgcli.evaluation.plan import Item, Plan, derive_seed, fingerprint
from kgcli.files import sha256
from kgcli.reading import read_json

NUM = 30_000
MAX_BYTES = 256 * 2**20  # of a file of captions; those of COCO have 65 MB at most
ANNOTATIONS = "annotations/captions_val2014.json"
HOW_TO_GET = (
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip and "
    "http://images.cocodataset.org/zips/val2014.zip, unpacked into one folder"
)
PUBLISHED = "published"
CHOICES = (PUBLISHED, "one")
UNIT = 8  # captions per batch
# Sampling settings of the paper. Source: KOSMOS-G (arXiv:2310.02992).
SAMPLING = SamplingConfig(num_inference_steps=250, guidance_scale=3.0, scheduler="ddim-leading", width=512, height=512)


@dataclass(frozen=True)
class Caption:
    """A caption and the image it describes."""

    text: str
    image_id: str = ""  # in COCO, if known


@dataclass(frozen=True)
class Captions:
    """The captions of a plan, and how they were chosen."""

    chosen: tuple[Caption, ...]
    fingerprint: dict[str, Any]


def sample_indices(population: int, num: int) -> list[int]:
    """Return the indices of `random.seed(0); random.sample(...)` without the global generator."""
    return random.Random(0).sample(range(population), num)


def choose_captions(choice: str, data: Path | None, num: int | None = None) -> Captions:
    """Return the captions of a choice: published, one, or a file.

    Raises: UsageError, MissingError.
    """
    if choice not in CHOICES:
        return _captions_of_file(Path(choice).expanduser(), num)
    path = annotations_of(data)
    captions = _read_annotations(path)
    if choice == "one":
        first: dict[str, Caption] = {}
        for caption in captions:
            first.setdefault(caption.image_id, caption)
        captions = list(first.values())
    wanted = NUM if num is None else num
    if not 1 <= wanted <= len(captions):
        raise UsageError(f"{wanted} captions are requested, but {path} has {len(captions)}; give --num")
    chosen = [captions[index] for index in sample_indices(len(captions), wanted)]
    return Captions(tuple(chosen), {"choice": choice, "of": len(captions), "annotations_sha256": sha256(path)})


def annotations_of(data: Path | None) -> Path:
    """Find the caption file in a COCO folder, or return the file itself. Raises: UsageError, MissingError."""
    if data is None:
        raise UsageError(f"give --data FOLDER with {ANNOTATIONS}; get it: {HOW_TO_GET}")
    data = data.expanduser()
    for path in (data, data / ANNOTATIONS, data / Path(ANNOTATIONS).name):
        if path.is_file():
            return path
    raise MissingError(f"{data} has no {ANNOTATIONS}; get it: {HOW_TO_GET}")


def coco_plan(captions: Captions, seed: int, method: Mapping[str, Any], data: Path | None = None) -> Plan:
    """Return the plan of one image per caption."""
    items = tuple(
        Item(
            path=f"images/{index // 1000:03d}/{index:06d}.png",
            unit=f"{index // UNIT:06d}",
            subject=caption.image_id or f"{index:06d}",
            prompt=index,
            image=0,
            input_text=caption.text,
            scored_text=caption.text,
            inputs=(),
            seed=derive_seed(seed, "coco", index),
        )
        for index, caption in enumerate(captions.chosen)
    )
    texts = fingerprint([item.scored_text for item in items])
    return Plan(
        suite="coco",
        protocol={"suite": "coco", "num_items": len(items), "captions": captions.fingerprint, "captions_sha256": texts},
        method={**method, "seed": seed, "unit": UNIT},
        data="" if data is None else str(data.expanduser().resolve()),
        items=items,
    )


def _read_annotations(path: Path) -> list[Caption]:
    try:
        annotations = read_json(path, max_bytes=MAX_BYTES)["annotations"]
        return [Caption(_tidy(one["caption"]), str(one["image_id"])) for one in annotations]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingError(f"{path} holds no COCO captions ({error!r}); get them: {HOW_TO_GET}") from None


def _captions_of_file(path: Path, num: int | None) -> Captions:
    if not path.is_file():
        raise UsageError(f"--captions is {path}; it must be {', '.join(CHOICES)} or an existing file")
    if path.suffix.lower() == ".json" and isinstance(read_json(path, max_bytes=MAX_BYTES, error=UsageError), dict):
        chosen = _read_annotations(path)
    else:
        entries = read_entries(str(path), error=UsageError)
        chosen = [_caption_of(entry, f"{path}, {label}") for label, entry in entries]
    wanted = len(chosen) if num is None else num
    if not 1 <= wanted <= len(chosen):
        raise UsageError(f"{wanted} captions are requested, but {path} has {len(chosen)}")
    return Captions(tuple(chosen[:wanted]), {"choice": "file", "of": len(chosen), "file_sha256": sha256(path)})


def _caption_of(entry: Any, where: str) -> Caption:
    """Return the caption of a text, a JSON object or a row of a table. Raises: UsageError."""
    if isinstance(entry, KgError):
        raise UsageError(f"{where}: {entry}")
    if isinstance(entry, str):
        return Caption(_tidy(entry))
    if isinstance(entry, dict) and isinstance(entry.get("caption"), str):
        return Caption(_tidy(entry["caption"]), str(entry.get("image_id", "")))
    raise UsageError(f'{where}: no caption; write {{"caption": "..."}}, or a column named caption')


def _tidy(text: str) -> str:
    """Collapse line ends and repeated spaces of a caption."""
    return " ".join(text.split())

"""InstructPix2Pix's clip-filtered-dataset: seeds.json, and a folder per prompt with prompt.json and images by seed.

Source: InstructPix2Pix (arXiv:2211.09800), the released data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kgcli.data.folders import read_below
from kgcli.data.importers.base import Filled, ImportOptions, Item, existing
from kgcli.data.shards.records import Edit
from kgcli.data.shards.write import as_member
from kgcli.errors import MissingError
from kgcli.reading import parse_json, read_json

SEEDS = "seeds.json"
MAX_SEEDS_BYTES = 2**30


class InstructPix2Pix:
    """An edit for each seed of each prompt."""

    name = "instructpix2pix"
    layout = "folder clip-filtered-dataset: seeds.json, prompt.json and SEED_0.jpg, SEED_1.jpg per prompt"
    uses: frozenset[str] = frozenset()

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the prompts of seeds.json."""
        folder = existing(source, what="folder")
        prompts = read_json(folder / SEEDS, max_bytes=MAX_SEEDS_BYTES)
        if not isinstance(prompts, list):
            raise MissingError(f"{folder / SEEDS} is not a list of [folder, seeds]")
        for entry in prompts:
            name = str(entry[0]) if isinstance(entry, list) and entry else str(entry)
            yield Item(name[:200], partial(_read, folder, entry))


def _read(folder: Path, entry: Any) -> Iterable[Filled]:
    match entry:
        case [str() as name, list() as seeds]:
            pass
        case _:
            raise MissingError(f"{SEEDS}: {str(entry)[:100]} is not [folder, seeds]")
    told = parse_json(read_below(folder, f"{name}/prompt.json", name), name=f"{name}/prompt.json")
    caption, instruction = (_text(told, names, name) for names in (("input", "caption"), ("edit",)))
    for seed in seeds:
        place = f"{name} seed {seed}"
        before, after = (as_member(read_below(folder, f"{name}/{seed}_{side}.jpg", place), place) for side in (0, 1))
        edit = Edit(before=f"0.{before[0]}", after=after[0], instruction=instruction, caption=caption, origin=place)
        yield edit, {edit.before: before[1], edit.after: after[1]}


def _text(value: Any, names: tuple[str, ...], origin: str) -> str:
    found = next((value[name] for name in names if name in value), None) if isinstance(value, dict) else None
    if not isinstance(found, str) or not found.strip():
        raise MissingError(f"{origin}/prompt.json has no text {' or '.join(names)}")
    return found.strip()

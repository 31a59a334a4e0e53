"""Statistics of shards: rows by kind, sizes of images, lengths of texts, entities, repeated images."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kgcli.data.looking.rows import SeenRow, counted, no_samples, read_rows, shards_of
from kgcli.data.shards.records import Compositional
from kgcli.data.shards.scan import header_size

QUANTILES = (0, 5, 50, 95, 100)  # percent
MOST_NOUNS = 20


class Stats:
    """Numbers of the rows that were added."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.nouns: Counter[str] = Counter()
        self.numbers: dict[str, list[float]] = {}
        self.num_bytes = 0
        self.empty_texts = 0
        self.faults = 0
        self.left_out = 0  # groups of files that are no sample
        self._hashes: Counter[bytes] = Counter()

    def add(self, row: SeenRow) -> None:
        """Count a row."""
        if row.record is None:
            self.faults += not row.left_out
            self.left_out += bool(row.left_out)
            return
        self.kinds[row.record.kind] += 1
        self.num_bytes += sum(map(len, row.members.values()))
        words = len(row.record.words.split())
        self.empty_texts += not words
        self._note("words of a text", words)
        self._note("images of a row", len(row.record.images))
        if isinstance(row.record, Compositional):
            self._note("entities of a caption", len(row.record.entities))
            self.nouns.update(entity.noun.lower() for entity in row.record.entities)
        main = row.record.main_image
        if main is not None and main in row.images:
            self._hashes[hashlib.sha256(row.images[main]).digest()] += 1
            width, height = header_size(io.BytesIO(row.images[main]))
            if width and height:
                self._note("width of the image, pixels", width)
                self._note("height of the image, pixels", height)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "rows": sum(self.kinds.values()),
            "faults": self.faults,
            "no_samples": self.left_out,
            "bytes": self.num_bytes,
            "kinds": dict(sorted(self.kinds.items())),
            "empty_texts": self.empty_texts,
            "repeated_images": sum(self._hashes.values()) - len(self._hashes),
            "quantiles": {
                name: dict(zip(map(str, QUANTILES), np.percentile(values, QUANTILES).tolist(), strict=True))
                for name, values in sorted(self.numbers.items())
            },
            "nouns": dict(sorted(self.nouns.items(), key=lambda one: (-one[1], one[0]))[:MOST_NOUNS]),
        }

    def __str__(self) -> str:
        """Lines of text."""
        found = self.as_dict()
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in found["kinds"].items())
        lines = [
            f"{counted(found['rows'], 'row')} ({kinds}), {found['bytes'] / 2**20:,.1f} MiB",
            f"{counted(found['faults'], 'fault')}, {no_samples(found['no_samples'])}, "
            f"{found['empty_texts']:,} without a text, {counted(found['repeated_images'], 'repeated image')}",
            f"{'':28}{'lowest':>9}{'5 %':>9}{'median':>9}{'95 %':>9}{'highest':>9}",
        ]
        for name, values in found["quantiles"].items():
            lines.append(f"{name:28}" + "".join(f"{value:9,.0f}" for value in values.values()))
        if found["nouns"]:
            lines.append("entities: " + ", ".join(f"{noun} {number:,}" for noun, number in found["nouns"].items()))
        return "\n".join(lines)

    def _note(self, name: str, value: float) -> None:
        self.numbers.setdefault(name, []).append(value)


def stats_of(path: Path) -> Stats:
    """Return the statistics of a folder of shards or one tar. Raises: MissingError where there are none."""
    found = Stats()
    for row in _rows(path):
        found.add(row)
    return found


def _rows(path: Path) -> Iterator[SeenRow]:
    for shard in shards_of(path):
        yield from read_rows(shard)

"""A source that caches its rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kgcli.data.sample import Fragments, Sample
from kgcli.data.sources.base import DerivedSource, Source
from kgcli.errors import KgError, PassingError


class KeptSource(DerivedSource):
    """A finite source that reads every row once per process and shows it again, words included."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._kept: dict[int, Sample] = {}

    def sample(self, index: int) -> Sample:
        """Return the row that the sample at `index` shows."""
        return self.read(self.row_of(index))

    def fragments(self, index: int) -> Fragments | None:
        """Return None: samples are kept whole."""
        return None

    def read(self, row: int) -> Sample:
        """Return a row, from memory where it was read before."""
        if row not in self._kept:
            self._kept[row] = self.source.read(row)
        return self._kept[row]

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield the rows that the source's substitutes show, with their faults."""
        for other, row in self.source.substitutes(index, error):
            try:
                found = self.read(row)
            except PassingError:
                continue
            yield replace(found, faults=other.faults), row

"""A source that caches its rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from kgcli.data.sample import Fragments, Sample
from kgcli.data.signals import leave_signals_to_parent
from kgcli.data.sources.base import DerivedSource, Source
from kgcli.errors import KgError, PassingError


class _Rows(Dataset[Sample | None]):
    """All rows of a source; None for one that cannot be read, which is left to the loader."""

    def __init__(self, source: Source, num: int) -> None:
        self.source, self.num = source, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> Sample | None:
        try:
            return self.source.read(row)
        except KgError:
            return None


class KeptSource(DerivedSource):
    """A finite source that reads every row once per process and shows it again, words included.

    What `fill` reads is shared by the processes forked after it.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._kept: dict[int, Sample] = {}

    def fill(self, num_workers: int, report: Callable[[str], object]) -> None:
        """Read all rows now, in several processes; `report` takes lines of progress."""
        assert self.num_rows is not None
        rows = _Rows(self.source, self.num_rows)
        settings: dict[str, Any] = {"num_workers": num_workers, "worker_init_fn": leave_signals_to_parent}
        for row, sample in enumerate(DataLoader(rows, batch_size=None, **settings)):
            if isinstance(sample, Sample):
                self._kept[row] = sample
            if (row + 1) % 5000 == 0:
                report(f"read {row + 1} of {self.num_rows} samples to be kept")

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

"""The first samples of a source as a source of their own, so that a short run caches them alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kgcli.data.sample import Fragments, Sample
from kgcli.data.sources.base import DerivedSource, Part, Source
from kgcli.errors import KgError, PassingError


class FirstSamples(DerivedSource):
    """The first `num` samples of a finite source, over and over; each is a row.

    Args:
        num: of samples; a source with fewer rows gives as many as it has rows
    """

    def __init__(self, source: Source, num: int) -> None:
        assert source.num_rows is not None, "an endless source has no caches"
        super().__init__(source)
        self.num = self.num_rows = min(num, source.num_rows)

    def sample(self, index: int) -> Sample:
        """Return the sample at `index`."""
        return self.source.sample(self.row_of(index))

    def fragments(self, index: int) -> Fragments | None:
        """Return the source's fragments."""
        return self.source.fragments(self.row_of(index))

    def row_of(self, index: int) -> int:
        """Return the number of a sample among the first."""
        return index % self.num

    def number_of(self, index: int) -> int:
        """Return the number of a sample among the first, which are the source's own."""
        return self.row_of(index)

    def read(self, row: int) -> Sample:
        """Return a sample."""
        return self.source.sample(row)

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield the following ones of the first samples, with the faults of the source's substitutes."""
        places = range(index + 1, index + self.num)
        for (other, _), place in zip(self.source.substitutes(self.row_of(index), error), places, strict=False):
            row = self.row_of(place)
            try:
                found = self.read(row)
            except PassingError:
                continue
            yield replace(found, faults=other.faults), row

    def fingerprint(self) -> dict[str, Any]:
        """Return the source's fingerprint and the rows of the samples, which the source's order decides."""
        rows = [self.source.row_of(number) for number in range(self.num)]
        return {**self.source.fingerprint(), "first": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}

    def parts(self) -> list[Part]:
        """Return all samples as one part."""
        return [Part(self.fingerprint(), 0, self.num)]

"""The protocol of training data: a numbered, endless, deterministic stream of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kgcli.data.sample import Fragments, Sample
from kgcli.errors import KgError

# How a stage uses an image with its caption: read the image and then predict the words, match the two, or generate
# the image from the words.
Use = Literal["read", "match", "generate"]


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a source that caches keep together: a shard, or all rows of one that has no parts."""

    fingerprint: dict[str, Any]  # what decides the rows; JSON values
    first: int  # row
    num_rows: int


class Source(Protocol):
    """An endless stream of samples over a finite or endless set of rows. Nothing but the index decides a sample.

    A row is what VAE moments are cached for and what may be kept in memory: a line of a file, an image of a pool. Two
    samples of one row show the same images; their words may differ.
    """

    gives: frozenset[str]  # fields of Sample that no sample lacks, of: fragments, images, caption, target, truth
    num_rows: int | None  # None: every sample is new
    tells_rows: bool  # the fingerprint decides the words and images of the rows, not their targets alone

    def sample(self, index: int) -> Sample:
        """Return the sample at `index` of the stream."""
        ...

    def fragments(self, index: int) -> Fragments | None:
        """Return the fragments of the sample at `index` where that is cheaper than the sample; else None.

        Those of a row that turns out to be bad may be returned, so they serve for lengths alone.

        Raises: PassingError where a row cannot be read now, so that the same index never has other fragments.
        """
        ...

    def row_of(self, index: int) -> int:
        """Return the row that the sample at `index` shows; the index itself where every sample is new.

        Raises: PassingError where that cannot be known now.
        """
        ...

    def read(self, row: int) -> Sample:
        """Return a sample that shows `row`."""
        ...

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield samples that may stand for the one at `index`, each with its row and a fault that gives the error.

        Those that cannot be read now are passed over.
        There are none where faults stop a run, or where no sample of the source can be bad.
        """
        ...

    def texts(self, num: int, seed: int) -> list[str]:
        """Return up to about `num` texts of the source, to train tokenizers on."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the rows, for caches to compare; JSON values."""
        ...

    def parts(self) -> list[Part]:
        """Return the parts of a finite source, in the order of their rows."""
        ...


class DerivedSource:
    """A source made from another: its samples and rows are what a subclass makes of the other's, all else is the
    other's own."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.gives = source.gives
        self.num_rows = source.num_rows
        self.tells_rows = source.tells_rows

    def fragments(self, index: int) -> Fragments | None:
        """Return the source's fragments."""
        return self.source.fragments(index)

    def row_of(self, index: int) -> int:
        """Return the row of a sample."""
        return self.source.row_of(index)

    def number_of(self, index: int) -> int:
        """Return the number of the source's sample from which the one at `index` is made."""
        return index

    def texts(self, num: int, seed: int) -> list[str]:
        """Return the source's sentences."""
        return self.source.texts(num, seed)

    def fingerprint(self) -> dict[str, Any]:
        """Return the source's fingerprint."""
        return self.source.fingerprint()

    def parts(self) -> list[Part]:
        """Return the source's parts."""
        return self.source.parts()

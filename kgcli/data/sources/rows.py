"""Finite sources: rows that may be bad, each replaced by the next good one of a chain that the row's number decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgcli.data.sample import Fault, Fragments, Sample
from kgcli.data.sources.base import Part
from kgcli.errors import KgError, MissingError, PassingError, PromptError
from kgcli.recipe import OnFault

MAX_TRIES = 64  # rows of a chain: as many bad ones in a row are no accident


class RowSource(ABC):
    """A source over a finite set of rows, which stops at a bad row or skips it.

    A bad row is replaced by a row that its own number decides, so that no sample but its own changes: numbers do not
    shift, and every process and every resumed run sees the same replacement. A row that cannot be read now, but may be
    later, is not replaced here: what caches know of it has to be its own. Its samples have `substitutes`.

    Args:
        num_rows: of the source
        seed: numbers that decide orders and replacements
        faults: what a bad row does
    """

    tells_rows = True

    def __init__(self, gives: frozenset[str], num_rows: int, seed: tuple[int, ...], faults: OnFault = "stop") -> None:
        self.gives = gives
        self.num_rows: int | None = num_rows
        self.seed = seed
        self.faults = faults

    @abstractmethod
    def row_of(self, index: int) -> int:
        """Return the row of a sample, good or bad. Raises: PassingError where that cannot be known now."""

    @abstractmethod
    def load(self, row: int, number: int) -> Sample:
        """Return a row as the sample of a number, which decides its words.

        Raises: MissingError, PromptError: the row cannot be read; PassingError: it cannot be read now.
        """

    @abstractmethod
    def told(self, row: int, number: int) -> Fragments:
        """Return the fragments of `load` without opening images. Raises: MissingError, PromptError."""

    @abstractmethod
    def place_of(self, row: int) -> tuple[str, str]:
        """Return the file that holds a row, and its name there, for messages."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what decides the rows by themselves, good or bad; JSON values.

        Where faults are skipped, this includes what decides which rows are bad.
        """

    def stand_in(self, row: int, number: int) -> Sample:
        """Return a row as the sample of a number that was to show a bad row. Raises: MissingError, PromptError."""
        return self.load(row, number)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the images that the rows show, for caches to compare; JSON values.

        Where faults are skipped, rows stand for bad ones, so that these and the chains decide them too.
        """
        if self.faults == "stop":
            return self.content()
        return {**self.content(), "chain": [*self.seed, self.num_rows]}

    def parts(self) -> list[Part]:
        """Return all rows as one part."""
        assert self.num_rows is not None
        return [Part(self.fingerprint(), 0, self.num_rows)]

    def sample(self, index: int) -> Sample:
        """Return the sample at `index`."""
        return self._good(*self._drawn(index))[1]

    def fragments(self, index: int) -> Fragments | None:
        """Return the fragments of the sample at `index`; None where its row turns out to be bad."""
        try:
            return self.told(*self._drawn(index))
        except PassingError:
            raise
        except (MissingError, PromptError):
            return None

    def read(self, row: int) -> Sample:
        """Return a sample that shows `row`."""
        return self._good(row, row)[1]

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield samples of the stream that the number decides; nothing where faults stop."""
        if self.faults == "stop":
            return
        assert self.num_rows is not None
        told = Fault(*self.place_of(self._blamed(index)), str(error), isinstance(error, PassingError))
        rng = np.random.default_rng([36, *self.seed, index])
        for _ in range(MAX_TRIES):
            number = int(rng.integers(self.num_rows))
            try:
                yield self._standing(number, told), self.row_of(number)  # kept by no name: images are large
            except PassingError:
                continue

    def _standing(self, number: int, told: Fault) -> Sample:
        found = self.sample(number)
        return replace(found, faults=(told, *found.faults))

    def _blamed(self, index: int) -> int:
        """Return the row that a sample shows, which may itself stand for a bad one, or as far as that is known now."""
        row = self.first_row(index)
        try:
            row, number = self._drawn(index)
            return self._good(row, number)[0]
        except PassingError:
            return row

    def first_row(self, index: int) -> int:
        """Return the row that a sample shows unless another stands for it; nothing is read for that."""
        return self.row_of(index)

    def _drawn(self, index: int) -> tuple[int, int]:
        """Return the row of a sample, and the number that decides its words."""
        return self.row_of(index), index

    def _good(self, row: int, number: int) -> tuple[int, Sample]:
        """Return a row with its sample, or the first good one of its chain with the faults of those before it.

        Raises: PassingError where it is not known now which row that is; MissingError where none is good.
        """
        if self.faults == "stop":
            return row, self.load(row, number)
        faults: list[Fault] = []
        for one in self._chain(row):
            try:
                found = self._checked(self.stand_in(one, number) if faults else self.load(one, number))
            except PassingError:
                raise
            except (MissingError, PromptError) as error:
                faults.append(Fault(*self.place_of(one), str(error)))
                continue
            return one, replace(found, faults=tuple(faults)) if faults else found
        last = faults[-1]
        raise MissingError(f"{last.file} {last.row} and {len(faults) - 1} rows drawn for it are all bad: {last.reason}")

    def _checked(self, sample: Sample) -> Sample:
        """Return a sample whose image to be generated has been opened."""
        if sample.target is not None:
            sample.target(1)
        return sample

    def _chain(self, row: int) -> Iterator[int]:
        yield row
        assert self.num_rows is not None
        rng = np.random.default_rng([33, *self.seed, row])
        for _ in range(min(MAX_TRIES, 4 * self.num_rows) - 1):
            yield int(rng.integers(self.num_rows))


class RowOrder:
    """Rows reshuffled in every epoch: a mapping from sample number to row."""

    def __init__(self, num_rows: int, seed: tuple[int, ...]) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self._orders: dict[int, NDArray[Any]] = {}

    def row(self, number: int) -> int:
        """Return the row of a sample."""
        epoch, place = divmod(number, self.num_rows)
        if epoch not in self._orders:
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = np.random.default_rng([21, *self.seed, epoch]).permutation(self.num_rows)
        return int(self._orders[epoch][place])


def stamp_of(path: Path) -> str:
    """Return size and time of a file, for fingerprints; an empty text for one that is not there."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: no name that a file can have
        return ""
    return f"{stat.st_size}\0{stat.st_mtime_ns}"

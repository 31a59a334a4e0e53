"""Several sources as one, each with an exact fraction of the samples."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgcli.data.sample import Fragments, Sample
from kgcli.data.sources.base import DerivedSource, Part, Source
from kgcli.errors import KgError

SHORTEST_PERIOD = 1000  # samples after which every source has had its exact fraction
MEASURED = 256  # samples of a source whose mean length stands for all
LONGEST_PERIOD = 20000  # of weights that divide evenly; others are rounded to this


class Schedule:
    """A mapping from sample number to source and to the number within that source.

    Every period holds each source in proportion to its weight, in a random order of its own. The result depends on the
    sample's number alone.

    Example:
        >>> schedule = Schedule([1, 2, 2], seed=0)
        >>> taken = [schedule(number)[0] for number in range(5000)]
        >>> [taken.count(source) for source in range(3)]
        [1000, 2000, 2000]
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.quotas = _quotas(weights)
        self.period = sum(self.quotas)
        self.seed = seed
        self._cycles: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

    def __call__(self, number: int) -> tuple[int, int]:
        """Return the source of a sample, and its number within that source."""
        cycle, place = divmod(number, self.period)
        if cycle not in self._cycles:
            while len(self._cycles) > 3:
                self._cycles.pop(next(iter(self._cycles)))
            self._cycles[cycle] = self._cycle(cycle)
        order, before = self._cycles[cycle]
        source = int(order[place])
        return source, cycle * self.quotas[source] + int(before[place])

    def _cycle(self, cycle: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the sources of a period in order, and how many of the same each has before it."""
        slots = np.repeat(np.arange(len(self.quotas)), self.quotas)
        order = np.random.default_rng([13, self.seed, cycle]).permutation(slots)
        before = np.zeros_like(order)
        for source, quota in enumerate(self.quotas):
            before[order == source] = np.arange(quota)
        return order, before


class Mixture:
    """A source that takes each sample from one of several, by weight.

    Args:
        together: neighbours that are of one source: the samples of a step, where the published code mixes so
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], *, seed: int, together: int = 1) -> None:
        self.sources = list(sources)
        self.weights = list(weights)
        self.seed = seed
        self.together = together
        self.schedule = Schedule(weights, seed)
        self.gives = frozenset.intersection(*(source.gives for source in sources))
        self.tells_rows = all(source.tells_rows for source in sources)
        sizes = [source.num_rows for source in sources]
        self.num_rows = sum(size or 0 for size in sizes) if all(sizes) else None
        self._starts = [0, *accumulate(size or 0 for size in sizes)]

    def sample(self, index: int) -> Sample:
        """Return the sample at `index`."""
        source, number = self._source_of(index)
        return self.sources[source].sample(number)

    def fragments(self, index: int) -> Fragments | None:
        """Return the fragments of the sample at `index`, where its source knows them."""
        source, number = self._source_of(index)
        return self.sources[source].fragments(number)

    def row_of(self, index: int) -> int:
        """Return the row of a sample, counted over all sources; the index itself where one of them is endless."""
        if self.num_rows is None:
            return index
        source, number = self._source_of(index)
        return self._starts[source] + self.sources[source].row_of(number)

    def read(self, row: int) -> Sample:
        """Return a sample that shows `row`."""
        source = bisect_right(self._starts, row) - 1
        return self.sources[source].read(row - self._starts[source])

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield the substitutes of the sample's own source, so that its fraction stays exact."""
        source, number = self._source_of(index)
        for other, row in self.sources[source].substitutes(number, error):
            yield other, index if self.num_rows is None else self._starts[source] + row

    def texts(self, num: int, seed: int) -> list[str]:
        """Return the sentences of all sources."""
        return [text for source in self.sources for text in source.texts(num, seed)]

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprints of all sources; weights change no row."""
        return {"sources": [source.fingerprint() for source in self.sources], "num": self.num_rows}

    def parts(self) -> list[Part]:
        """Return the parts of all sources."""
        return [
            replace(part, first=start + part.first)
            for source, start in zip(self.sources, self._starts, strict=False)
            for part in source.parts()
        ]

    def weigh_by(self, length: Callable[[Fragments], int]) -> None:
        """Make the weights fractions of tokens, where they were fractions of samples.

        The mean length of a source is that of its first samples, so that every process and run finds the same.
        """
        measured = [[length(fragments_of(source, number)) for number in range(MEASURED)] for source in self.sources]
        means = [sum(lengths) / MEASURED for lengths in measured]
        weights = [weight / max(mean, 1.0) for weight, mean in zip(self.weights, means, strict=True)]
        self.schedule = Schedule([float(f"{weight:.6g}") for weight in weights], self.seed)

    def source_of_step(self, step: int) -> int:
        """Return the source of all samples of a step, where `together` is the number of those."""
        return self.schedule(step)[0]

    def _source_of(self, index: int) -> tuple[int, int]:
        """Return the source of a sample, and its number within that source."""
        turn, place = divmod(index, self.together)
        source, number = self.schedule(turn)
        return source, number * self.together + place


def fragments_of(source: Source, index: int) -> Fragments:
    """Return the fragments of a sample, without its images where the source knows them."""
    found = source.fragments(index)
    return source.sample(index).fragments if found is None else found


def weigh_by_tokens(source: Source, length: Callable[[Fragments], int]) -> None:
    """Make the weights of a mixture fractions of tokens.

    Args:
        length: number of tokens of fragments
    """
    mixture = _below(source)[-1]
    assert isinstance(mixture, Mixture), "a recipe that weighs tokens has several sources"
    mixture.weigh_by(length)


def kind_of_steps(source: Source) -> Callable[[int], int] | None:
    """Return the mapping from a step to the source of all its samples, for a mixture by batch; None for others."""
    *derived, mixture = _below(source)
    if not isinstance(mixture, Mixture) or mixture.together == 1:
        return None

    def kind_of(step: int) -> int:
        number = step * mixture.together
        for one in derived:
            number = one.number_of(number)
        return mixture.source_of_step(number // mixture.together)

    return kind_of


def _below(source: Source) -> list[Any]:
    """Return a source and those that it is derived from, in turn; the last is derived from none."""
    found: list[Any] = [source]
    while isinstance(found[-1], DerivedSource):
        found.append(found[-1].source)
    return found


def _quotas(weights: Sequence[float]) -> list[int]:
    """Return the number of samples of each source in one period, in exact proportion if a period allows it."""
    exact = [Fraction(str(weight)) for weight in weights]
    unit = sum(exact)
    fractions = [weight / unit for weight in exact]
    period = math.lcm(*(fraction.denominator for fraction in fractions))
    if period > LONGEST_PERIOD:
        return _rounded(fractions, LONGEST_PERIOD)
    period *= -(-SHORTEST_PERIOD // period)
    return [int(fraction * period) for fraction in fractions]


def _rounded(fractions: list[Fraction], period: int) -> list[int]:
    """Return quotas that add up to the period, the largest remainders rounded up and none below 1."""
    quotas = [max(1, int(fraction * period)) for fraction in fractions]
    by_need = sorted(range(len(fractions)), key=lambda source: quotas[source] - fractions[source] * period)
    for source in by_need[: max(0, period - sum(quotas))]:
        quotas[source] += 1
    return quotas

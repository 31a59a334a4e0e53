"""The batch of each step: the samples that each process takes from a source, prefetched by worker processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from kgcli.data.batch import Batch, Collator
from kgcli.data.sample import Fault, Sample
from kgcli.data.signals import leave_signals_to_parent
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError, KgError, PassingError, PromptError

EVALUATION_STEP = 1 << 40  # samples from here on are never trained on, but for those of files: their rows come again


class Batches(Dataset[Batch]):
    """The batch of each step: samples step * B to (step + 1) * B of a source, of which this process takes its part.

    With `bucket` above 1, the samples of that many steps are grouped by length and the steps put in random order.
    Grouping comes before the split over processes, so it does not depend on their number. Samples of steps that
    `kind_of` tells apart stay apart: a step whose samples are of one source still has them of one.

    Args:
        kind_of: the kind of a step's samples, where all samples of a step are of one kind
    """

    def __init__(
        self,
        source: Source,
        collator: Collator,
        *,
        batch_size: int,
        bucket: int = 1,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        kind_of: Callable[[int], int] | None = None,
    ) -> None:
        if batch_size % num_ranks:
            raise ConfigError(
                f"data.batch_size is {batch_size}, which {num_ranks} processes cannot split evenly; "
                f"make it a multiple of {num_ranks}"
            )
        self.source = source
        self.collator = collator
        self.batch_size = batch_size
        self.bucket = bucket
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.kind_of = kind_of
        self._dealt: tuple[int, list[list[int]]] = (-1, [])  # first step of the bucket, and the indices of its steps
        self._ahead: dict[int, Sample] = {}  # of the bucket, where lengths were not known without them

    def __getitem__(self, step: int) -> Batch:
        indices = self.indices(step)
        rows, faults = [0] * len(indices), list[Fault]()
        batch = self.collator(self._shown(indices, rows, faults), rows)
        return dataclasses.replace(batch, numbers=tuple(indices), faults=tuple(faults))

    def indices(self, step: int) -> list[int]:
        """Return the sample numbers that this process takes in a step.

        Raises: PassingError where a bucket cannot be sorted now.
        """
        if self.bucket == 1:
            return list(self._numbers(step, 1))[self.rank :: self.num_ranks]
        first = step - step % self.bucket
        if self._dealt[0] != first:
            self._dealt = (first, self._deal(first))
        return self._dealt[1][step - first]

    def _numbers(self, first: int, num_steps: int) -> range:
        return range(first * self.batch_size, (first + num_steps) * self.batch_size)

    def _deal(self, first: int) -> list[list[int]]:
        """Sort the samples of a bucket by kind and length, cut them into steps, shuffle these; return this process's
        part.

        Every process deals for itself, so a length is never guessed: another order would show samples twice or never.
        """
        lengths, samples = {}, {}
        for index in self._numbers(first, self.bucket):
            try:
                fragments = self.source.fragments(index)
                if fragments is None:
                    samples[index] = self.source.sample(index)
                    fragments = samples[index].fragments
            except PassingError as error:
                raise PassingError(f"{error}; `data.bucket` needs its length, so start again once it can be") from None
            lengths[index] = self.collator.length(fragments)
        ordered = sorted(lengths, key=lambda index: (self._kind(index), lengths[index]))
        order = np.random.default_rng([7, self.seed, first]).permutation(self.bucket)
        steps = [ordered[place * self.batch_size : (place + 1) * self.batch_size] for place in order]
        own = [step[self.rank :: self.num_ranks] for step in steps]
        self._ahead = {index: samples[index] for step in own for index in step if index in samples}
        return own

    def _shown(self, indices: list[int], rows: list[int], faults: list[Fault]) -> Iterator[Sample]:
        """Yield the samples of numbers, one at a time: decoded images take much more memory than a batch of them.

        Args:
            rows: where the row of each sample is written before it is yielded
            faults: to which those of each sample are added
        """
        for place, index in enumerate(indices):
            sample, rows[place] = self._fitting(index)
            faults += sample.faults
            yield sample

    def _fitting(self, index: int) -> tuple[Sample, int]:
        """Return a sample with its row, or where it cannot be read now or taken by the model one that stands for it.

        The batch keeps the sample's own number. Raises: PromptError, PassingError where nothing stands for it.
        """
        faults: tuple[Fault, ...] = ()
        try:
            sample = self._sample(index)
            faults = sample.faults
            self.collator.check(sample)
            return sample, self.source.row_of(index)
        except (PromptError, PassingError) as error:
            fault = error.with_traceback(None)  # whose frames hold the sample
        sample = Sample()  # in place of one with large images
        for other, row in self.source.substitutes(index, fault):
            try:
                self.collator.check(other)
            except PromptError:
                continue
            return dataclasses.replace(other, faults=faults + other.faults), row
        raise fault

    def _kind(self, index: int) -> int:
        """Return the kind of a sample's step; every kind fills whole steps."""
        return 0 if self.kind_of is None else self.kind_of(index // self.batch_size)

    def _sample(self, index: int) -> Sample:
        return self._ahead.pop(index) if index in self._ahead else self.source.sample(index)


class _Guarded(Dataset[Any]):
    """Batches that return an error as a value: torch would wrap it in a worker's traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | KgError:
        try:
            return self.batches[step]
        except KgError as error:
            return error


def load_batches(batches: Batches, first: int, num_steps: int, num_workers: int) -> Iterator[Batch]:
    """Yield the batches of steps `first` to `num_steps`, prefetched by `num_workers` processes.

    Raises: KgError where a sample cannot be read.
    """
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=range(first, num_steps),
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_parent,
        prefetch_factor=4 if num_workers else None,
    )
    for batch in loader:
        if isinstance(batch, KgError):
            raise batch
        yield batch

"""The losses of a batch that is split over processes and into micro-batches, as one process would compute them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kgcli.data.batch import Batch
from kgcli.data.sample import Fault
from kgcli.errors import KgError
from kgcli.training.parallel import OneProcess

if TYPE_CHECKING:
    from kgcli.training.stages.base import Stage


class SplitLosses:
    """The losses of each micro-batch of a process's part of a batch, weighted so that all of them add up to the means
    over the whole batch.

    A loss is a mean over items: samples, or what the stage counts. Counts are added over micro-batches and processes.
    """

    def __init__(
        self,
        stage: Stage,
        processes: OneProcess,
        accumulate: int,
        forward: Callable[..., dict[str, Tensor]],
    ) -> None:
        """Args:
        accumulate: micro-batches in a process's part of a batch
        forward: the stage's losses of a micro-batch at the step reached; for a stage that contrasts samples, its
            second argument is as the stage's third
        """
        self.stage = stage
        self.processes = processes
        self.accumulate = accumulate
        self.forward = forward

    def __call__(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """Yield the weighted losses of one micro-batch after another."""
        batch, totals = self._agree(batch)
        parts = batch.split(self.accumulate)
        fraction = 1.0 / (len(parts) * self.processes.num)
        features = self._features(parts)
        for place, part in enumerate(parts):
            self.processes.sync_gradients(place == len(parts) - 1)
            losses = self.forward(part, *([] if features is None else [functools.partial(features, place)]))
            weights = {name: num / max(totals[name], 1) for name, num in self.stage.counts(part).items()}
            yield {name: loss * weights.get(name, fraction) for name, loss in losses.items()}

    def _agree(self, batch: Batch) -> tuple[Batch, dict[str, int]]:
        """Return the batch, with sequences as long as in all processes if the stage needs that, and its counts."""
        counts, pad = self.stage.counts(batch), self.stage.padding()
        length = 0 if pad is None or batch.tokens is None else batch.tokens.shape[1]
        if not counts and not length:
            return batch, {}
        found = self.processes.exchange([length, *counts.values()])
        totals = {name: sum(numbers[place] for numbers in found) for place, name in enumerate(counts, start=1)}
        longest = max(numbers[0] for numbers in found)
        return (batch if pad is None or longest == length else batch.padded(longest, pad)), totals

    def _features(self, parts: list[Batch]) -> WholeFeatures | None:
        """Return the features of the whole batch for a stage that contrasts samples; None: there is nothing to add.

        With several micro-batches they are computed twice: first without gradients, to have those of the others.
        """
        if not self.stage.contrasts or (len(parts) == 1 and self.processes.num == 1):
            return None
        features = WholeFeatures(self.processes, len(parts))
        if len(parts) > 1:
            with torch.no_grad():
                for part in parts:
                    self.forward(part, features.keep)
        return features


def read_together(
    batches: Iterator[Batch], processes: OneProcess, note: Callable[[Iterable[Fault]], None]
) -> Iterator[Batch]:
    """Yield a process's batches; a sample that one process cannot read ends all of them.

    Args:
        note: takes the rows that were skipped by any process, alike on all; it may raise a KgError

    Raises: KgError.
    """
    while True:
        batch, ending = None, None
        try:
            batch = next(batches, None)
        except KgError as error:
            ending = error
        skipped = batch.faults if batch is not None else ()
        found = processes.exchange([int(ending is not None), len(skipped)])
        if any(ends for ends, _ in found):
            raise ending or KgError("another process cannot read its samples; its message says why")
        if any(num for _, num in found):
            note(fault for faults in processes.share(skipped) for fault in faults)
        if batch is None:
            return
        yield batch


class WholeFeatures:
    """The features of a whole batch, of which only the rows of one micro-batch carry gradients.

    Every micro-batch of every process computes the same contrast of all samples, with its own rows differentiable.
    Their gradients are multiplied by the number of micro-batches, so that the mean over micro-batches is the gradient
    of the contrast, for features and for parameters of the contrast itself (its temperature) alike.
    Source: gradient caching (arXiv:2101.06983).
    """

    def __init__(self, processes: OneProcess, num_parts: int) -> None:
        self.processes = processes
        self.num_parts = num_parts  # micro-batches of a process
        self.kept: list[tuple[Tensor, ...]] = []
        self.gathered: list[list[Tensor]] = []  # of each feature, the rows of every micro-batch of every process

    def keep(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Remember the features of the next micro-batch; return them."""
        self.kept.append(features)
        return features

    def __call__(self, place: int, *features: Tensor) -> tuple[Tensor, ...]:
        """Return the features of all samples, the micro-batch's own with gradients."""
        if not self.gathered:
            self.gathered = [self._gather(parts) for parts in zip(*(self.kept or [features]), strict=True)]
        own = self.processes.rank * self.num_parts + place
        return tuple(
            torch.cat([*parts[:own], _scale_gradient(rows, len(parts)), *parts[own + 1 :]])
            for rows, parts in zip(features, self.gathered, strict=True)
        )

    def _gather(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        processes = self.processes.gather(torch.cat(parts).detach())
        return [rows for tensor in processes for rows in tensor.chunk(self.num_parts)]


def _scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """Return the tensor; its gradient is multiplied by `factor`."""
    if not tensor.requires_grad:
        return tensor
    constant = tensor.detach()
    return constant + (tensor - constant) * factor

"""Batches of requests: which images are denoised together, and what that means for each of them.

An image of a batch differs in its last bits from the same image generated alone, because sums of a batch are taken in
another order. They depend on the number of rows and on the row, not on what the other rows hold; so an image is
generated again exactly by a batch that repeats its own request in every row.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from kgcli.config import MAX_BATCH, SamplingConfig
from kgcli.errors import OutOfMemoryError, UsageError
from kgcli.inference.request import BatchRow, Request
from kgcli.runtime import free_memory

AUTO = "auto"
# Memory per pixel of an image in a batch: eight of the widest activations of Stable Diffusion v1's VAE, 256 channels
# in fp32 at full resolution, as an estimate of what is held at one time.
ROW_BYTES = 8 * 256 * 4
CPU_ROWS = 8  # more rows are no faster on a CPU
_log = logging.getLogger(__name__)


class Batches:
    """Consecutive requests with the same size, settings and adapters, at most `size` at a time.

    A request that already has its row is alone in a batch of its recorded size.

    Example:
        >>> from kgcli.data.prompt import Prompt
        >>> requests = [Request(prompt=Prompt.parse("a cat"), seed=seed) for seed in range(5)]
        >>> [len(batch) for batch in Batches(requests, 2)]
        [2, 2, 1]
    """

    def __init__(self, requests: Iterable[Request], size: int, *, may_halve: bool = False) -> None:
        """Args:
        size: images of a batch
        may_halve: a batch that runs out of memory is halved, and so are all later ones
        """
        self.size = size
        self.may_halve = may_halve
        self._requests = iter(requests)
        self._waiting: deque[Request] = deque()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> list[Request]:
        """Return the requests of the next batch, each with its row."""
        first = self._waiting.popleft() if self._waiting else next(self._requests)
        if first.row.size > 1:
            return [first]
        batch = [first]
        while len(batch) < self.size and (other := self._peek()) is not None and _fit(first, other):
            batch.append(self._waiting.popleft())
        return [replace(one, row=BatchRow(size=len(batch), index=index)) for index, one in enumerate(batch)]

    def halve(self, batch: list[Request]) -> bool:
        """Put the requests of a batch that ran out of memory back, for batches half as large.

        Returns False if it cannot be smaller.
        """
        if not self.may_halve or len(batch) == 1:
            return False
        self.size = len(batch) // 2
        self._waiting.extendleft(replace(one, row=BatchRow()) for one in reversed(batch))
        _log.warning("out of memory with %d images at once: going on with %d", len(batch), self.size)
        return True

    def _peek(self) -> Request | None:
        if not self._waiting:
            self._waiting.extend(itertools.islice(self._requests, 1))
        return self._waiting[0] if self._waiting else None


def _fit(one: Request, other: Request) -> bool:
    """Return True if two requests can be denoised together."""
    return other.row.size == 1 and (one.sampling, one.adapters) == (other.sampling, other.adapters)


def make_batches(requests: Iterable[Request], size: int | str, sampling: SamplingConfig, device: str) -> Batches:
    """Return the batches of requests; the size `auto` starts with what should fit and halves when memory runs out.

    Args:
        sampling: the model's own, in place of what a request leaves open
    """
    if size != AUTO:
        return Batches(requests, parse_size(str(size)))
    requests = iter(requests)
    first = list(itertools.islice(requests, 1))
    width, height = (first[0].sampling if first else sampling).over(sampling).size
    return Batches(itertools.chain(first, requests), auto_size(width * height, device), may_halve=True)


def auto_size(num_pixels: int, device: str, free_bytes: int | None = None) -> int:
    """Return the size to try first for images of `num_pixels`: a power of two.

    A GPU reports that its memory is used up; on a CPU the system ends the process, so free memory is asked for first.

    Args:
        free_bytes: free main memory, by default this machine's; not used on a GPU
    """
    if not device.startswith("cpu"):
        return MAX_BATCH
    free = free_memory() if free_bytes is None else free_bytes
    rows = CPU_ROWS
    while rows > 1 and free is not None and rows * num_pixels * ROW_BYTES > free // 2:
        rows //= 2
    return rows


def parse_size(text: str) -> int:
    """Parse a batch size other than auto.

    Raises: UsageError.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_BATCH):
        raise UsageError(f"--batch-size is {text}; it must be auto or from 1 to {MAX_BATCH}")
    return int(text)


@contextmanager
def halved_on_failure(batches: Batches, batch: list[Request]) -> Iterator[list[Request]]:
    """Give an empty list, which holds the batch afterwards if it ran out of memory and was put back in halves.

    Raises: OutOfMemoryError if it cannot be smaller.
    """
    failed: list[Request] = []
    try:
        yield failed
    except OutOfMemoryError:
        if not batches.halve(batch):
            raise
        failed += batch


def each_row(on_step: Callable[[int], None] | None, num_rows: int) -> Callable[[int], None] | None:
    """Return a step callback that calls `on_step` once for each row."""
    if on_step is None or num_rows == 1:
        return on_step

    def report(step: int) -> None:
        for _ in range(num_rows):
            on_step(step)

    return report

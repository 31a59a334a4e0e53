"""The order of rows in each epoch, a function of the seed: shards shuffled, then rows within a window of shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KEPT = 3  # windows whose rows stay in memory


class WindowOrder:
    """A mapping from sample number to row, such that every epoch holds every row once.

    Only the shards of one window are read at a time, so that a page cache or a disk serves them well.

    Args:
        sizes: rows of each shard
        window: shards whose rows are shuffled together; None keeps the order of the rows
        seed: numbers that decide the order

    Example:
        >>> order = WindowOrder([3, 2, 4], window=2, seed=(0,))
        >>> sorted(order.row(number) for number in range(9))
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(self, sizes: Sequence[int], *, window: int | None, seed: Sequence[int]) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.num_rows = int(self.starts[-1])
        self.window = window
        self.seed = list(seed)
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._windows: dict[tuple[int, int], NDArray[np.int64]] = {}

    def row(self, number: int) -> int:
        """Return the row of a sample."""
        epoch, place = divmod(number, self.num_rows)
        if self.window is None:
            return place
        shards, begins = self._epoch(epoch)
        window = int(np.searchsorted(begins, place, side="right")) - 1
        rows = self._rows(epoch, window, shards)
        return int(rows[place - begins[window]])

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards of an epoch in order, and the place at which each window begins."""
        if epoch not in self._epochs:
            assert self.window is not None
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            held = np.flatnonzero(self.sizes)  # a window of empty shards would begin where the next does
            shards = np.random.default_rng([31, *self.seed, epoch]).permutation(held)
            sizes = np.add.reduceat(self.sizes[shards], np.arange(0, len(shards), self.window))
            self._epochs[epoch] = shards, np.concatenate([[0], np.cumsum(sizes)])
        return self._epochs[epoch]

    def _rows(self, epoch: int, window: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a window in order."""
        key = epoch, window
        if key not in self._windows:
            assert self.window is not None
            while len(self._windows) >= KEPT:
                self._windows.pop(next(iter(self._windows)))
            own = shards[window * self.window : (window + 1) * self.window]
            rows = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in own])
            self._windows[key] = np.random.default_rng([32, *self.seed, epoch, window]).permutation(rows)
        return self._windows[key]

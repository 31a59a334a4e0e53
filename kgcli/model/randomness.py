"""Randomness of one training step, drawn per sample: independent of processes, micro-batches and the other samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fractional part, in units of 2^-64


class StepRandom:
    """Random numbers for the samples of one step, a function of (seed, step, sample number) alone.

    Each sample has its own stream, so a batch that is split over processes or into micro-batches draws the numbers
    of the whole batch. `shared` is the stream of the step: equal in every process.

    Example:
        >>> whole, half = StepRandom(0, 7, [4, 5]), StepRandom(0, 7, [5])
        >>> torch.equal(whole.normal(2)[1:], half.normal(2))
        True
    """

    def __init__(self, seed: int, step: int, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self.shared = _stream(seed, step)
        self.streams = [_stream(seed, step, number) for number in numbers]

    def __len__(self) -> int:
        return len(self.streams)

    def uniform(self, *shape: int) -> Tensor:
        """Return (B, *shape) numbers in [0, 1) on the CPU."""
        return torch.stack([torch.rand(shape, generator=stream) for stream in self.streams])

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) standard normal numbers on the CPU."""
        return torch.stack([torch.randn(shape, generator=stream) for stream in self.streams])

    def integers(self, high: int) -> Tensor:
        """Return (B,) integers in [0, high) on the CPU."""
        return torch.cat([torch.randint(high, (1,), generator=stream) for stream in self.streams])

    def spread(self) -> Tensor:
        """Return (B,) numbers in [0, 1) on the CPU that cover the interval more evenly than independent ones.

        A random offset per step plus multiples of the golden ratio by sample number: consecutive samples lie far apart,
        and each sample's number is independent of the other samples.
        """
        offset = torch.rand((), generator=self.shared, dtype=torch.float64)
        multiples = [number * GOLDEN_RATIO % 2**64 / 2**64 for number in self.numbers]
        numbers = (offset + torch.tensor(multiples, dtype=torch.float64)) % 1
        return numbers.float().clamp(max=1 - 2**-24)

    def repeated(self, num: int) -> StepRandom:
        """Return the same streams `num` times over, for `num` views of every sample, view by view."""
        again = StepRandom.__new__(StepRandom)
        again.numbers, again.shared, again.streams = self.numbers * num, self.shared, self.streams * num
        return again


def _stream(*key: int) -> torch.Generator:
    """Return a generator seeded by a hash of the key: neighbouring keys give unrelated streams."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

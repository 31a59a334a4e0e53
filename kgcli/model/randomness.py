"""Randomness of one training step, drawn per sample: independent of processes, micro-batches and the other samples."""

from __future__ import annotations

import copy
import math
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

    @property
    def dropout_seed(self) -> int:
        """A seed for what is drawn for the samples together: that of the first."""
        return self.streams[0].initial_seed()


class HashedRandom(StepRandom):
    """The same for a GPU: numbers are hashes of (seed, step, sample number, place), all computed there at once.

    A generator per sample costs the processor 45 us of every sample, more than a small U-Net costs a GPU. The numbers
    are not a `StepRandom`'s, but depend as little on processes, micro-batches and other samples; the hashes are the
    same on every device. `shared` and `spread` stay on the CPU.

    Source of the mixing function: splitmix64, S. Vigna (2015), public domain.
    """

    def __init__(self, seed: int, step: int, numbers: Sequence[int], device: torch.device) -> None:
        self.numbers = list(numbers)
        self.shared = _stream(seed, step)
        self.key = int(self.shared.initial_seed())
        self.keys_B = _mixed(torch.tensor(self.numbers, device=device) * _signed(GOLDEN_RATIO) + self.key)
        self.place = 0  # of the next number in each sample's stream

    def __len__(self) -> int:
        return len(self.numbers)

    def uniform(self, *shape: int) -> Tensor:
        """Return (B, *shape) numbers in [0, 1) on the device."""
        bits = self._bits(math.prod(shape))
        return ((bits >> 40) & 0xFFFFFF).float().mul_(2.0**-24).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) standard normal numbers on the device: pairs of Box and Muller's."""
        num = math.prod(shape)
        bits = self._bits((num + 1) // 2)
        radius = (((bits >> 32) & 0xFFFFFFFF).float() + 1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :num].reshape(-1, *shape)

    def integers(self, high: int) -> Tensor:
        """Return (B,) integers in [0, high) on the device; `high` is at most 2^31."""
        return ((self._bits(1)[:, 0] >> 32) & 0xFFFFFFFF) * high >> 32

    def repeated(self, num: int) -> StepRandom:
        """Return streams for `num` views of every sample, view by view, each with a key of its own."""
        again = copy.copy(self)
        again.numbers = self.numbers * num
        again.keys_B = torch.cat([_mixed(self.keys_B + self.place + view) for view in range(num)])
        return again

    @property
    def dropout_seed(self) -> int:
        """A seed for what is drawn for the samples together."""
        return (self.key + self.numbers[0]) % 2**63

    def _bits(self, num: int) -> Tensor:
        """Return the next `num` 64-bit hashes of each sample, (B, num)."""
        places = torch.arange(self.place, self.place + num, device=self.keys_B.device)
        self.place += num
        return _mixed(self.keys_B[:, None] + places * _signed(GOLDEN_RATIO))


def step_random(seed: int, step: int, numbers: Sequence[int], device: torch.device) -> StepRandom:
    """Return the randomness of a step in the form that suits a device."""
    return StepRandom(seed, step, numbers) if device.type == "cpu" else HashedRandom(seed, step, numbers, device)


def _mixed(values: Tensor) -> Tensor:
    """Return a hash of each int64 number; products wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * _signed(factor)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _stream(*key: int) -> torch.Generator:
    """Return a generator seeded by a hash of the key: neighbouring keys give unrelated streams."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

"""Timesteps of a training batch, spread evenly over the noise schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from kgcli.model.randomness import StepRandom

LOW_NOISE = 0.4  # of the schedule: below it a denoiser learns detail, above it layout
HIGH_NOISE = 0.8  # of the schedule: above it an image with its noise no longer tells the colours of large areas


def stratified_timesteps(
    random: StepRandom, num_steps: int, *, low_noise: float = 0.0, high_noise: float = 0.0, min_timestep: int = 0
) -> Tensor:
    """Return a timestep per sample, (B,), together evenly spread over the schedule, or over the parts asked for.

    Args:
        low_noise: fraction of the samples, of those that high_noise leaves, restricted to the first LOW_NOISE of what
            min_timestep leaves of the schedule
        high_noise: fraction of the samples restricted to what follows HIGH_NOISE of the whole schedule
        min_timestep: the first timestep drawn
    """
    places = random.spread()
    is_high, rest = places < high_noise, (places - high_noise) / max(1 - high_noise, 1e-6)
    split = low_noise + (1 - low_noise) * LOW_NOISE
    # The inverse of the mixture's distribution function, whose slope changes at LOW_NOISE.
    times = torch.where(rest < split, rest * LOW_NOISE / split, (rest - low_noise) / max(1 - low_noise, 1e-6))
    steps = _spaced(times, min_timestep, num_steps)
    high = _spaced(places / max(high_noise, 1e-6), max(round(HIGH_NOISE * num_steps), min_timestep), num_steps)
    return torch.where(is_high, high, steps)


def _spaced(times: Tensor, first: int, end: int) -> Tensor:
    """Return the timesteps from `first` up to `end`, excluded, at these fractions of the way."""
    return first + (times * (end - first)).long().clamp(max=end - first - 1)

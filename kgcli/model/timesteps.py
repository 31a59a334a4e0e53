"""Timesteps of a training batch, spread evenly over the noise schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from kgcli.model.randomness import StepRandom

LOW_NOISE = 0.4  # of the schedule: below it a denoiser learns detail, above it layout


def stratified_timesteps(random: StepRandom, num_steps: int, low_noise: float = 0.0, min_timestep: int = 0) -> Tensor:
    """Return a timestep per sample, (B,): each uniform over the schedule, together evenly spread.

    Args:
        low_noise: fraction of the samples restricted to the first LOW_NOISE of the schedule
        min_timestep: the first timestep drawn; the schedule is what follows it
    """
    places = random.spread()
    # The inverse of the mixture's distribution function, whose slope changes at LOW_NOISE.
    split = low_noise + (1 - low_noise) * LOW_NOISE
    times = torch.where(places < split, places * LOW_NOISE / split, (places - low_noise) / max(1 - low_noise, 1e-6))
    left = num_steps - min_timestep
    return min_timestep + (times * left).long().clamp(max=left - 1)

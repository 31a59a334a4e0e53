"""Timesteps of a training batch, spread evenly over the noise schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from kgcli.config import Strict
from kgcli.errors import ConfigError
from kgcli.model.randomness import StepRandom

LOW_NOISE = 0.4  # of the schedule: below it a denoiser learns detail, above it layout
HIGH_NOISE = 0.8  # of the schedule: above it an image with its noise no longer tells the colours of large areas


class TimestepOptions(Strict):
    """stratified: timesteps spread evenly over each batch. high_noise: fraction of stratified timesteps drawn from the
    noisiest fifth of the schedule alone, where the colours of large areas are decided. low_noise: fraction of the
    others kept to the beginning of the schedule, where detail is learnt. min_timestep: the first timestep drawn; below
    it an image with its noise tells most of what the prompt could."""

    stratified: bool = False
    low_noise: float = 0.0
    high_noise: float = 0.0
    min_timestep: int = 0

    def check_timesteps(self, num_steps: int) -> None:
        """Check the options against a schedule. Raises: ConfigError."""
        first, high, low = self.min_timestep, self.high_noise, self.low_noise
        if not 0 <= first < num_steps:
            raise ConfigError(f"options.min_timestep is {first}; the decoder's timesteps are 0 to {num_steps - 1}")
        for name, value in (("high_noise", high), ("low_noise", low)):
            if not 0 <= value <= 1:
                raise ConfigError(f"options.{name} is {value}; it must be a fraction, 0 to 1")
            if value and not self.stratified:
                raise ConfigError(f"options.{name} is a fraction of stratified timesteps; set options.stratified=1")
        if high and first >= HIGH_NOISE * num_steps:
            raise ConfigError(
                f"options.min_timestep is {first}: all timesteps from there on are high noise; set options.high_noise=0"
            )

    def draw_timesteps(self, random: StepRandom, num_steps: int) -> Tensor | None:
        """Return a timestep per sample, (B,); None: any of the schedule, which the diffusion draws by itself."""
        if self.stratified:
            fractions = {"low_noise": self.low_noise, "high_noise": self.high_noise}
            return stratified_timesteps(random, num_steps, **fractions, min_timestep=self.min_timestep)
        if not self.min_timestep:
            return None
        return self.min_timestep + random.integers(num_steps - self.min_timestep)


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

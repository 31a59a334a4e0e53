"""The frozen image decoder: U-Net, VAE and noise schedule of any diffusers directory with the SD v1.x layout.

Shape letters: B batch, C latent channels, H W latent height and width, S d conditioning length and width,
X Y image height and width in pixels.

Source: latent diffusion (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kgcli.errors import IncompatibleError
from kgcli.model.randomness import StepRandom

# Map noisy latents, timesteps and conditioning to further U-Net arguments, such as a ControlNet's residuals.
Steer = Callable[[Tensor, Tensor, Tensor], Mapping[str, Any]]


class Diffusion(nn.Module):
    """Image decoder: a U-Net, VAE and noise schedule, frozen unless a stage trains them."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler_config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.scheduler_config = dict(scheduler_config or {})
        # Training adds noise by this schedule whichever sampler the directory names.
        self.noise_scheduler = DDPMScheduler.from_config(self.scheduler_config)
        self.requires_grad_(False).eval()

    @property
    def pixels_per_latent(self) -> int:
        """Pixels per latent position, in either direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps of the noise schedule that training draws from."""
        return int(self.noise_scheduler.config.num_train_timesteps)

    def check_conditioning(self, width: int) -> None:
        """Check that the U-Net attends to vectors of this width.

        Raises: IncompatibleError.
        """
        expected = self.unet.config.cross_attention_dim
        if expected != width:
            raise IncompatibleError(
                f"the decoder attends to vectors of width {expected}, this model makes {width}; "
                "choose a decoder of the family the aligner was trained for"
            )

    def check_size(self, width: int, height: int) -> None:
        """Refuse a size in pixels that is not a multiple of the latent factor.

        Raises: IncompatibleError.
        """
        factor = self.pixels_per_latent
        if width % factor or height % factor:
            raise IncompatibleError(f"{width} x {height} pixels do not divide by this decoder's factor of {factor}")

    def latents(
        self, pixels_B3XY: Tensor, *, random: StepRandom | None = None, eps_BCHW: Tensor | None = None
    ) -> Tensor:
        """Encode images in [-1, 1] to sampled latents, scaled for the U-Net."""
        return self.sample_latents(*self.moments(pixels_B3XY), random=random, eps_BCHW=eps_BCHW)

    @torch.no_grad()
    def moments(self, pixels_B3XY: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, (B, C, H, W) each: enough to cache an image."""
        posterior = self.vae.encode(pixels_B3XY.to(self.vae.dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def sample_latents(
        self,
        mean_BCHW: Tensor,
        logvar_BCHW: Tensor,
        *,
        random: StepRandom | None = None,
        eps_BCHW: Tensor | None = None,
    ) -> Tensor:
        """Sample latents from the moments, scaled for the U-Net; `eps_BCHW` replaces the random noise."""
        if eps_BCHW is None:
            eps_BCHW = _normal_like(mean_BCHW, random)
        return self.vae.config.scaling_factor * (mean_BCHW + torch.exp(0.5 * logvar_BCHW) * eps_BCHW)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode the U-Net's latents to images in [0, 1], (B, 3, X, Y)."""
        unscaled_BCHW = latents_BCHW.to(self.vae.dtype) / self.vae.config.scaling_factor
        return (self.vae.decode(unscaled_BCHW).sample.float() / 2 + 0.5).clamp(0, 1)

    def noise_loss(
        self,
        latents_BCHW: Tensor,
        conditioning_BSd: Tensor,
        *,
        random: StepRandom | None = None,
        noise_BCHW: Tensor | None = None,
        timesteps_B: Tensor | None = None,
        weight_BHW: Tensor | None = None,
        steer: Steer | None = None,
    ) -> Tensor:
        """Return the squared error of the U-Net's prediction, averaged per example and then over the batch.

        The gradient passes through the frozen U-Net into the conditioning. Noise and timesteps that are not given
        are drawn from `random`; `weight_BHW` multiplies the error of each latent position.
        """
        if noise_BCHW is None:
            noise_BCHW = _normal_like(latents_BCHW, random)
        if timesteps_B is None:
            timesteps_B = self._sample_timesteps(random)
        timesteps_B = timesteps_B.to(latents_BCHW.device)
        noisy_BCHW = self.noise_scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        prediction_BCHW = self.predict(noisy_BCHW, timesteps_B, conditioning_BSd, steer)
        error_BCHW = (prediction_BCHW - self.target(latents_BCHW, noise_BCHW, timesteps_B).float()).square()
        if weight_BHW is not None:
            error_BCHW = error_BCHW * weight_BHW[:, None]
        return error_BCHW.flatten(start_dim=1).mean(dim=1).mean()

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning_BSd: Tensor, steer: Steer | None = None
    ) -> Tensor:
        """Return the U-Net's prediction for noisy latents, in fp32: epsilon, v or x0, by the schedule."""
        inputs = noisy_BCHW.to(self.unet.dtype), timesteps_B, conditioning_BSd.to(self.unet.dtype)
        return self.unet(*inputs, **(steer(*inputs) if steer else {})).sample.float()

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the training target (epsilon, v or x0) of the noise schedule."""
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise_BCHW
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
        if kind == "sample":
            return latents_BCHW
        raise IncompatibleError(f"the decoder's prediction type {kind} is none of epsilon, v_prediction, sample")

    def _sample_timesteps(self, random: StepRandom | None) -> Tensor:
        assert random is not None, "give random, or noise and timesteps"
        return random.integers(self.num_train_timesteps)


def _normal_like(tensor: Tensor, random: StepRandom | None) -> Tensor:
    assert random is not None, "give random, or the noise itself"
    return random.normal(*tensor.shape[1:]).to(tensor)

"""The stage that sharpens a VAE's decoder with a patch discriminator; the latents stay the same.

Shape letters: B batch, X Y pixels, P Q patches down and across.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from kgcli.data.batch import Batch
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup
from kgcli.training.stages.vae import ReconstructionOptions, ReconstructionStage

DISCRIMINATOR_CHANNELS = (32, 64, 96)


class PatchDiscriminator(nn.Module):
    """A score for each patch of an image: above 0 for a real one, below for a decoded one. 91 thousand parameters.

    Shapes:
        (B, 3, X, Y) -> (B, 1, P, Q), P = X / 4

    Source: PatchGAN of "Image-to-image translation with conditional adversarial networks" (arXiv:1611.07004).
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = DISCRIMINATOR_CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(first, second, 4, 2, 1),
            nn.GroupNorm(8, second),
            nn.LeakyReLU(0.2),
            nn.Conv2d(second, third, 3, 1, 1),
            nn.GroupNorm(8, third),
            nn.LeakyReLU(0.2),
            nn.Conv2d(third, 1, 3, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class SharpenOptions(ReconstructionOptions):
    """adversarial: weight of the discriminator's score."""

    adversarial: float = 0.05


class SharpenStage(ReconstructionStage):
    """A VAE's decoder against a patch discriminator, its encoder frozen. Source: hinge loss as in arXiv:2012.09841."""

    Options = SharpenOptions
    options: SharpenOptions
    trains = ("vae.decoder.", "vae.post_quant_conv.", "discriminator.")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.vae = AutoencoderKL.from_pretrained(self.setup.source("vae") / "vae")
        self.discriminator = PatchDiscriminator()
        self.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        pixels = self.crops(batch, random)
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean
        rebuilt = self.vae.decode(latents).sample.float()
        # The decoder's gradient passes through the discriminator and does not train it.
        score = functional_call(
            self.discriminator, {name: p.detach() for name, p in self.discriminator.named_parameters()}, (rebuilt,)
        )
        real, fake = self.discriminator(pixels), self.discriminator(rebuilt.detach())
        return {
            **self.errors(rebuilt, pixels),
            "adversarial": -self.options.adversarial * score.float().mean(),
            "discriminator": F.relu(1 - real).float().mean() + F.relu(1 + fake).float().mean(),
        }

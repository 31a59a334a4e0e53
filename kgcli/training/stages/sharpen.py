"""The stage that sharpens a VAE's decoder with a patch discriminator; the latents stay the same.

Shape letters: B batch, X Y pixels, P Q patches down and across.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup, Stage
from kgcli.training.stages.vae import edge_error, random_crops, show_reconstructions

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


class SharpenOptions(Strict):
    """adversarial: weight of the discriminator's score. edges, crop: as of the VAE's own stage."""

    adversarial: float = 0.05
    edges: float = 0.5
    crop: int = 0


class SharpenStage(Stage):
    """A VAE's decoder against a patch discriminator, its encoder frozen. Source: hinge loss as in arXiv:2012.09841."""

    needs = frozenset({"targets"})
    Options = SharpenOptions
    options: SharpenOptions
    trains = ("vae.decoder.", "vae.post_quant_conv.", "discriminator.")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.vae = AutoencoderKL.from_pretrained(self.setup.source("vae") / "vae")
        self.discriminator = PatchDiscriminator()
        self.to(memory_format=torch.channels_last)

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.setup.image_size, 0)

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.targets is not None
        pixels = random_crops(batch.targets, self.options.crop, random)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean
        rebuilt = self.vae.decode(latents).sample.float()
        # The decoder's gradient passes through the discriminator and does not train it.
        score = functional_call(
            self.discriminator, {name: p.detach() for name, p in self.discriminator.named_parameters()}, (rebuilt,)
        )
        real, fake = self.discriminator(pixels), self.discriminator(rebuilt.detach())
        return {
            "pixels": F.l1_loss(rebuilt, pixels) + 2.0 * F.mse_loss(rebuilt, pixels),
            "edges": self.options.edges * edge_error(rebuilt, pixels),
            "adversarial": -self.options.adversarial * score.float().mean(),
            "discriminator": F.relu(1 - real).float().mean() + F.relu(1 + fake).float().mean(),
        }

    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return show_reconstructions(self.vae, batch)

    def export(self, folder: Path) -> None:
        self.vae.save_pretrained(folder / "vae")

"""The stage that trains the VAE of the nano base; its result is a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.errors import ConfigError
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup, Stage


class ReconstructionOptions(Strict):
    """edges: weight of the error of differences between neighbouring pixels, which keeps outlines sharp. crop: side in
    pixels of the random square of each image that it trains on; 0 takes the whole image."""

    edges: float = 0.5
    crop: int = 0


class ReconstructionStage(Stage):
    """A stage that trains a VAE, or its decoder, to give images back."""

    needs = frozenset({"targets"})
    options: ReconstructionOptions
    vae: AutoencoderKL

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.setup.image_size, 0)

    def crops(self, batch: Batch, random: StepRandom) -> Tensor:
        """Return the pixels that a step trains on, (B, 3, X, Y) in [-1, 1]."""
        assert batch.targets is not None
        pixels = random_crops(batch.targets, self.options.crop, random)
        return pixels.contiguous(memory_format=torch.channels_last)

    def errors(self, rebuilt: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Return the losses of reconstructions: of pixels, and of edges."""
        return {
            "pixels": F.l1_loss(rebuilt, pixels) + 2.0 * F.mse_loss(rebuilt, pixels),
            "edges": self.options.edges * edge_error(rebuilt, pixels),
        }

    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return show_reconstructions(self.vae, batch)

    def export(self, folder: Path) -> None:
        self.vae.save_pretrained(folder / "vae")


class VaeOptions(ReconstructionOptions):
    """kl: weight of the mean KL divergence per latent number."""

    kl: float = 1e-4


class VaeStage(ReconstructionStage):
    """Images to latents and back: AutoencoderKL, with latents of unit variance on export."""

    Options = VaeOptions
    options: VaeOptions
    trains = ("vae.",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.vae = AutoencoderKL.from_config(self.setup.part("vae"))
        if self.vae.quant_conv is None or self.vae.post_quant_conv is None:
            raise ConfigError(
                "parts.vae: use_quant_conv and use_post_quant_conv must be true: the result's scale of latents is "
                "folded into those two layers"
            )
        self.vae.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        pixels = self.crops(batch, random)
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        eps = random.normal(*mean.shape[1:]).to(mean)
        rebuilt = self.vae.decode((mean + torch.exp(0.5 * logvar) * eps).to(posterior.mean.dtype)).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return {**self.errors(rebuilt, pixels), "kl": self.options.kl * kl}

    def export(self, folder: Path) -> None:
        self.vae.register_to_config(scaling_factor=1.0)
        super().export(folder)

    @torch.no_grad()
    def calibrate(self, sample: Callable[[int], Sample]) -> None:
        """Fold each latent channel's mean and deviation into the quantisation convolutions."""
        collate, latents = self.collator(None), []
        for first in range(0, 512, 64):
            indices = list(range(first, first + 64))
            targets = collate([sample(index) for index in indices], indices).targets
            assert targets is not None
            latents.append(self.vae.encode(targets.to(self.vae.device)).latent_dist.mean)
        mean, std = torch.cat(latents).mean((0, 2, 3)), torch.cat(latents).std((0, 2, 3))
        into, out = self.vae.quant_conv, self.vae.post_quant_conv
        half = len(mean)
        into.bias[:half] = (into.bias[:half] - mean) / std
        into.weight[:half] /= std[:, None, None, None]
        into.bias[half:] -= 2 * std.log()  # the second half of the channels is the log variance
        out.bias += (out.weight[..., 0, 0] * mean).sum(1)
        out.weight *= std[None, :, None, None]


def random_crops(images: Tensor, side: int, random: StepRandom) -> Tensor:
    """Return a random square of each image, `side` pixels wide; 0 returns them whole.

    Shapes:
        images: (B, C, S, S) -> (B, C, side, side)
    """
    room = images.shape[-1] - side
    if side == 0 or room <= 0:
        return images
    starts = (random.uniform(2) * (room + 1)).long().to(images.device)
    places = starts[:, :, None] + torch.arange(side, device=images.device)  # (B, 2, side)
    rows, columns = places[:, 0, None, :, None], places[:, 1, None, None, :]
    samples, channels = (torch.arange(num, device=images.device) for num in images.shape[:2])
    return images[samples[:, None, None, None], channels[None, :, None, None], rows, columns]


def edge_error(rebuilt: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean error of differences between neighbouring pixels."""
    error = rebuilt - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def show_reconstructions(vae: AutoencoderKL, batch: Batch) -> Tensor:
    """Return the first images of a batch and their reconstructions below, (N, 3, X, Y) in [0, 1]."""
    assert batch.targets is not None
    pixels = batch.targets[:16]
    rebuilt = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    return torch.cat([pixels, rebuilt]).clamp(-1, 1) / 2 + 0.5

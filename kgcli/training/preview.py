"""Sample images during training, by the denoising call of inference."""

from __future__ import annotations

import torch
from torch import Tensor

from kgcli.config import SamplingConfig
from kgcli.inference.denoise import denoise, make_sd, steered
from kgcli.model.diffusion import Diffusion, Steer

NUM_PREVIEW = 32  # images of a sample grid


def preview_images(
    diffusion: Diffusion,
    wanted_BSd: Tensor,
    null_1Sd: Tensor,
    generator: torch.Generator,
    *,
    side: int,
    guidance_scale: float | None,
    num_inference_steps: int = 20,
    steer: Steer | None = None,
) -> Tensor:
    """Sample images of `side` pixels by DDIM with classifier-free guidance: (B, 3, side, side) in [0, 1]."""
    sampling = SamplingConfig(
        width=side,
        height=side,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=0.0,
        scheduler="ddim",
    )
    with steered(diffusion.unet, steer):
        images = denoise(
            make_sd(diffusion),
            diffusion,
            wanted_BSd,
            null_1Sd.expand_as(wanted_BSd),
            [generator] * len(wanted_BSd),
            sampling,
            output_type="pt",
        )
    return torch.stack(images)

"""Quick pictures during training, straight from conditionings; users' pictures come from `pipeline`."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from kgcli.model.diffusion import Diffusion, Steer


@torch.no_grad()
def preview_pictures(
    diffusion: Diffusion,
    wanted_BSd: Tensor,
    null_1Sd: Tensor,
    generator: torch.Generator,
    *,
    guidance_scale: float,
    num_inference_steps: int = 20,
    steer: Steer | None = None,
) -> Tensor:
    """Pictures of conditionings by DDIM with classifier-free guidance: (B, 3, X, Y) in [0, 1]."""
    scheduler = DDIMScheduler.from_config(diffusion.scheduler_config)
    scheduler.set_timesteps(num_inference_steps)
    size, channels = diffusion.unet.config.sample_size, diffusion.unet.config.in_channels
    latents_BCHW = torch.randn((len(wanted_BSd), channels, size, size), generator=generator).to(wanted_BSd.device)
    conditioning_BSd = torch.cat([null_1Sd.expand_as(wanted_BSd), wanted_BSd])
    for timestep in scheduler.timesteps:
        both_BCHW = scheduler.scale_model_input(torch.cat([latents_BCHW, latents_BCHW]), timestep)
        timesteps_B = timestep.expand(len(both_BCHW))
        without, given = diffusion.predict(both_BCHW, timesteps_B, conditioning_BSd, steer).chunk(2)
        guided_BCHW = without + guidance_scale * (given - without)
        latents_BCHW = scheduler.step(guided_BCHW, timestep, latents_BCHW).prev_sample
    return diffusion.decode(latents_BCHW)

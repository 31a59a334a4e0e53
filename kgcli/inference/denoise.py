"""Images from conditionings: diffusers' StableDiffusionPipeline around any decoder, and the schedulers by their
command-line names.

Shape letters: B images, S d conditioning, C H W latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from kgcli.config import MAX_BATCH, SamplingConfig
from kgcli.errors import IncompatibleError, UsageError
from kgcli.model.diffusion import Diffusion, Steer
from kgcli.model.finite import finite_images

TILED_PIXELS = 1024 * 1024  # of one image; the VAE decodes a larger one in tiles
SLICED_PIXELS = 2048 * 2048  # of all images denoised at once; above this each is decoded alone
StepCallback = Callable[[int], None]
ZERO_SNR = "rescale_betas_zero_snr"

# Class, then defaults for settings that the decoder lacks. Latents are not pixels in [-1, 1]: never clipped.
_SAMPLERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    # The published model was made with a diffusers whose solver ends at the noise level of timestep 0.
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"}),
    "euler": (EulerDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {"clip_sample": False}),
}
# Settings of the published evaluations: over the decoder's own, so that a protocol means one thing for all decoders.
# Source: KOSMOS-G (arXiv:2310.02992), its released scripts; diffusers' own default for the last has since moved.
PROTOCOL_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++-sigma-min": (
        "dpm++",
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "timestep_spacing": "linspace",
            "lower_order_final": True,
            "final_sigmas_type": "sigma_min",
        },
    ),
    "ddim-leading": (
        "ddim",
        {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False},
    ),
}


def make_sd(decoder: Diffusion, kind: Callable[..., Any] = StableDiffusionPipeline, **parts: Any) -> Any:
    """Return a diffusers pipeline of the Stable Diffusion v1 family around this decoder, with its other parts.

    Its scheduler is a placeholder: on construction diffusers would modify one with older settings and warn.
    """
    pipeline = kind(**{**sd_parts(decoder), **parts}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sd_parts(decoder: Diffusion) -> dict[str, Any]:
    """Return the parts common to every pipeline of the family."""
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    stand_in = DDIMScheduler(steps_offset=1, clip_sample=False)
    return {"vae": decoder.vae, "unet": decoder.unet, "scheduler": stand_in, **absent}


def make_scheduler(name: str | None, decoder_config: Mapping[str, Any]) -> Any:
    """Return a diffusers scheduler that follows the decoder's prediction type, noise schedule and timestep spacing.

    Raises:
        UsageError: unknown scheduler.
        IncompatibleError: the scheduler cannot start from the pure noise the decoder was trained on.
    """
    if name in PROTOCOL_SAMPLERS:
        name, settings = PROTOCOL_SAMPLERS[name]
        return make_scheduler(name, {**decoder_config, **settings})
    if name is None or name not in _SAMPLERS:
        raise UsageError(f"there is no scheduler {name}; choose one of {', '.join(_SAMPLERS)}")
    kind, defaults = _SAMPLERS[name]
    known = inspect.signature(kind.__init__).parameters
    if decoder_config.get(ZERO_SNR) and ZERO_SNR not in known:
        raise IncompatibleError(
            f"the scheduler {name} cannot start from pure noise, which this decoder was trained on (zero terminal "
            "SNR); choose ddim, dpm++, euler, unipc or lcm"
        )
    settings = {**defaults, **{key: value for key, value in decoder_config.items() if key in known}}
    return kind.from_config(settings)


@torch.no_grad()
def denoise(
    sd: Any,
    decoder: Diffusion,
    embeds_BSd: Tensor,
    negative_BSd: Tensor | None,
    generators: Sequence[torch.Generator],
    sampling: SamplingConfig,
    *,
    on_step: StepCallback | None = None,
    output_type: str = "pil",
    **more: Any,
) -> list[Any]:
    """Return one image for each row of the conditioning and its generator.

    The noise is drawn image by image, so that a row gives the same image in any batch, up to rounding. More rows than
    MAX_BATCH are split. At a guidance scale of 1 or less `negative_BSd` is not used. `sampling` must be complete;
    `more` is passed to the diffusers pipeline.

    Args:
        sd: a pipeline of `make_sd` around `decoder`, on the device of `embeds_BSd`
        output_type: as of diffusers: pil gives PIL images, pt tensors (3, X, Y) in [0, 1]
    """
    (width, height), side, unet = sampling.size, sd.vae_scale_factor, decoder.unet
    dtype, device = unet.dtype, embeds_BSd.device
    guided = sampling.guidance_scale is not None and sampling.guidance_scale > 1
    images: list[Any] = []
    for start in range(0, len(embeds_BSd), MAX_BATCH):
        rows = slice(start, start + MAX_BATCH)
        shape = (unet.config.in_channels, height // side, width // side)
        negative = None if not guided or negative_BSd is None else negative_BSd[rows].to(device, dtype)
        noise = [torch.randn(shape, generator=one, device=one.device) for one in generators[rows]]
        sd.scheduler = make_scheduler(sampling.scheduler, decoder.scheduler_config)
        sd.scheduler.step = _HostTimesteps(sd.scheduler)
        with _memory_spared(decoder.vae, width * height, len(noise)), finite_images(decoder.vae):
            images += sd(
                prompt_embeds=embeds_BSd[rows].to(dtype=dtype),
                negative_prompt_embeds=negative,
                latents=torch.stack(noise).to(device, dtype),
                generator=list(generators[rows]),  # for samplers that draw noise in every step
                width=width,
                height=height,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                guidance_rescale=sampling.guidance_rescale,
                output_type=output_type,
                callback_on_step_end=_StepReport(on_step) if on_step else None,
                **more,
            ).images
    return images


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator for each seed: the same noise on any device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def steered(unet: Any, steer: Steer | None) -> Iterator[None]:
    """Add arguments to every U-Net call, such as the residuals of ControlNets; None adds none."""
    if steer is None:
        yield
        return

    def add(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sample, timestep = args
        return args, {**options, **steer(sample, timestep, options["encoder_hidden_states"])}

    handle = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _HostTimesteps:
    """The `step` of a scheduler, which finds its timesteps in main memory: to read one from a GPU would wait for all
    of the GPU's work in every step. The U-Net still gets those on the device."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.taken = 0
        update_wrapper(self, scheduler.step)  # pipelines look at its parameters

    def __call__(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """Take the next of the timesteps, which pipelines pass in their order."""
        if self.taken == 0:
            self.scheduler.timesteps = self.scheduler.timesteps.cpu()
        host = self.scheduler.timesteps[self.taken]
        self.taken += 1
        return self.__wrapped__(model_output, host, sample, **options)  # type: ignore[attr-defined]


class _StepReport:
    """Callback of diffusers after each step."""

    def __init__(self, on_step: StepCallback) -> None:
        self.on_step = on_step

    def __call__(self, pipeline: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        self.on_step(step + 1)
        return values


@contextmanager
def _memory_spared(vae: Any, num_pixels: int, num_images: int) -> Iterator[None]:
    """Decode large images in tiles and large batches one by one; the VAE's settings are restored afterwards."""
    before = vae.use_tiling, vae.use_slicing
    vae.use_tiling = before[0] or num_pixels > TILED_PIXELS
    vae.use_slicing = before[1] or (num_images > 1 and num_pixels * num_images > SLICED_PIXELS)
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before

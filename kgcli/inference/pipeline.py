"""KosmosGPipeline: interleaved prompts to pictures, and to the embeddings that any Stable Diffusion pipeline takes.

`encode_prompt` gives `prompt_embeds` and `negative_prompt_embeds` in the shape of Stable Diffusion's own text
embedding; what draws is diffusers' own StableDiffusionPipeline.

Shape letters: B prompts or pictures, S d conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from kgcli.config import OFFLOADS
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import UsageError
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.inputs import PictureLike, PromptLike, read_negatives, read_prompts
from kgcli.inference.schedulers import make_scheduler
from kgcli.model.diffusion import Diffusion
from kgcli.model.finite import finite_images
from kgcli.model.kosmosg import KosmosG
from kgcli.runtime import check_quantize
from kgcli.weights.decoder import load_decoder
from kgcli.weights.folder import ModelFolder, open_model
from kgcli.weights.load import load_kosmosg

MAX_BATCH = 16  # pictures drawn at once; a longer batch goes in pieces
TILED_PIXELS = 1024 * 1024  # of one picture; a VAE decodes a larger one in tiles
SLICED_PIXELS = 2048 * 2048  # of all pictures drawn at once; from here on each is decoded alone
StepCallback = Callable[[int], None]
Images = PictureLike | Sequence[PictureLike | Sequence[PictureLike] | None]


class KosmosGPipeline:
    """A model, its tokenizer and an image decoder as one callable, with the manners of a diffusers pipeline."""

    def __init__(self, model: KosmosG, tokenizer: Tokenizer, decoder: Diffusion) -> None:
        decoder.check_conditioning(model.cfg.aligner.width)
        self.encoder = PromptEncoder(model, tokenizer)
        self.decoder = decoder
        # Its scheduler is set by each call: the model's default may not suit another decoder.
        self.sd: Any = StableDiffusionPipeline(**self._parts(), requires_safety_checker=False)
        self.sd.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | ModelFolder | None = None,
        *,
        decoder: str | Path | None = None,
        torch_dtype: torch.dtype = torch.float32,
        quantize: str = "none",
        variant: str | None = None,
        device: str | torch.device = "cpu",
        local_files_only: bool = False,
    ) -> KosmosGPipeline:
        """The pipeline of a model folder or Hub id, or of the small model that ships with the package.

        `decoder` is a diffusers folder or Hub id of the Stable Diffusion v1 family, or one .safetensors file.
        `quantize` (8bit, 4bit) holds the MLLM's linear layers in few bits.

        Raises: MissingError, IncompatibleError, UsageError.
        """
        check_quantize(quantize, str(device))
        if not isinstance(model, ModelFolder):
            model = open_model(
                None if model is None else str(model), None if decoder is None else str(decoder), local_files_only
            )
        kosmosg = load_kosmosg(model.path, device=device, dtype=torch_dtype, quantize=quantize)
        diffusion = load_decoder(
            model.decoder,
            dtype=torch_dtype,
            local_files_only=local_files_only,
            variant=variant,
            sizes=model.decoder_sizes,
        )
        return cls(kosmosg, model.tokenizer, diffusion.to(device))

    @property
    def model(self) -> KosmosG:
        """What reads prompts."""
        return self.encoder.model

    @property
    def tokenizer(self) -> Tokenizer:
        """What cuts text into tokens."""
        return self.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """Where it computes, wherever its weights lie."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        return self.encoder.dtype

    @property
    def components(self) -> dict[str, Any]:
        """The parts of a Stable Diffusion pipeline: `StableDiffusionImg2ImgPipeline(**pipe.components)`."""
        return {**self._parts(), "scheduler": self.make_scheduler()}

    def make_scheduler(self, name: str | None = None) -> Any:
        """The scheduler of a name (ddim, pndm, dpm++, euler, unipc, lcm) or the model's default, for this decoder.

        Raises: UsageError, IncompatibleError.
        """
        return make_scheduler(name or self.model.cfg.generation.scheduler, self.decoder.scheduler_config)

    def make_pipeline(self, kind: Callable[..., Any], **parts: Any) -> Any:
        """Any diffusers pipeline of the Stable Diffusion v1 family with this decoder in it, given its further parts."""
        # The scheduler comes later: in the making, diffusers would change one of older settings and warn of it.
        scheduler = parts.pop("scheduler", None) or self.make_scheduler()
        pipeline = kind(**{**self._parts(), **parts}, requires_safety_checker=False)
        pipeline.scheduler = scheduler
        return pipeline

    def _parts(self) -> dict[str, Any]:
        """What every pipeline is made of, with a scheduler that stands in for any other."""
        absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        stand_in = DDIMScheduler(steps_offset=1, clip_sample=False)
        return {"vae": self.decoder.vae, "unet": self.decoder.unet, "scheduler": stand_in, **absent}

    def to(self, *where: str | torch.device | torch.dtype, dtype: torch.dtype | None = None) -> KosmosGPipeline:
        """Move it, or change its precision, or both; returns the pipeline itself."""
        device = None
        for one in where:
            if isinstance(one, torch.dtype):
                dtype = one
            else:
                device = torch.device(one)
        if self.encoder.offload != "none" and device is not None:
            raise UsageError("a pipeline with offload has its device already; call enable_offload again")
        self.encoder.to(device, dtype)
        self.decoder.to(device=device, dtype=dtype)
        return self

    def enable_offload(self, mode: str, device: str | torch.device = "cuda") -> None:
        """Keep weights in main memory and lend the device what is at work: whole models ("model") or parts of the
        prompt's reader and single layers of the decoder ("sequential", slowest and smallest).

        Raises: UsageError for another mode.
        """
        if mode not in OFFLOADS:
            raise UsageError(f"offload is {mode}; it must be one of {', '.join(OFFLOADS)}")
        self.sd.remove_all_hooks()
        self.encoder.set_offload(mode, torch.device(device))
        if mode == "model":
            self.sd.enable_model_cpu_offload(device=device)
        elif mode == "sequential":
            self.sd.enable_sequential_cpu_offload(device=device)
        else:
            self.decoder.to(device)

    def encode_prompt(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        images: Images | None = None,
        negative_prompt: PromptLike | Sequence[PromptLike] | None = None,
        num_images_per_prompt: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """`prompt_embeds` and `negative_prompt_embeds`, (B, S, d) each, for any pipeline with this decoder.

        Args:
            prompt: text with `<image:PATH>` tags, or with `<image>` where the pictures of `images` belong; or a list.
            images: pictures or paths in reading order, one or a list for one prompt, an entry for each of several.
            negative_prompt: one for all or one for each; without words the start token alone is guided away from.
            num_images_per_prompt: rows for each prompt; leave it at 1 where the drawing pipeline repeats them.

        Raises: PromptError, UsageError, ImageError.
        """
        prompts, pictures = read_prompts(prompt, images)
        negatives = read_negatives(negative_prompt, len(prompts))
        rows = self.encoder.encode(prompts, pictures), self.encoder.encode_negatives(negatives)
        return rows[0].repeat_interleave(num_images_per_prompt, 0), rows[1].repeat_interleave(num_images_per_prompt, 0)

    def __call__(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        images: Images | None = None,
        *,
        negative_prompt: PromptLike | Sequence[PromptLike] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **settings: Any,
    ) -> StableDiffusionPipelineOutput:
        """Pictures of prompts, or of embeddings, as `.images`; `settings` are those of `draw`.

        A generator for each picture, or one that draws the noise of all of them in turn.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise UsageError("give either prompt or prompt_embeds")
        if prompt is not None:
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt, images, negative_prompt, num_images_per_prompt
            )
        assert prompt_embeds is not None, "checked above"
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        generators = [generator] * len(prompt_embeds) if isinstance(generator, torch.Generator) else list(generator)
        pictures = self.draw(prompt_embeds, negative_prompt_embeds, generators=generators, **settings)
        return StableDiffusionPipelineOutput(images=pictures, nsfw_content_detected=None)

    @torch.no_grad()
    def draw(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None = None,
        *,
        generators: Sequence[torch.Generator],
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        scheduler: str | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture for each row of `prompt_embeds` and its generator; None takes the model's default.

        At a guidance scale of 1 or less nothing is guided away from and no null rows are computed.
        """
        if len(generators) != len(prompt_embeds):
            raise UsageError(f"{len(prompt_embeds)} pictures but {len(generators)} generators; give one for each")
        defaults = self.model.cfg.generation
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        guided = scale > 1
        if guided and negative_prompt_embeds is None:
            negative_prompt_embeds = self.encoder.encode_negatives(read_negatives(None, len(prompt_embeds)))
        options = {
            "width": width or defaults.width,
            "height": height or defaults.height,
            "num_inference_steps": num_inference_steps or defaults.num_inference_steps,
            "guidance_scale": scale,
            "guidance_rescale": defaults.guidance_rescale if guidance_rescale is None else guidance_rescale,
            "callback_on_step_end": _StepReport(on_step) if on_step else None,
        }
        pictures: list[Image.Image] = []
        for start in range(0, len(prompt_embeds), MAX_BATCH):
            rows = slice(start, start + MAX_BATCH)
            negative = negative_prompt_embeds[rows] if guided and negative_prompt_embeds is not None else None
            self.sd.scheduler = self.make_scheduler(scheduler)
            pictures += self._draw(prompt_embeds[rows], negative, generators[rows], options)
        return pictures

    def _draw(
        self, embeds: Tensor, negative: Tensor | None, generators: Sequence[torch.Generator], options: dict[str, Any]
    ) -> list[Image.Image]:
        """One call of the diffusers pipeline, its noise drawn picture by picture: the same in any batch."""
        dtype, side = self.sd.unet.dtype, self.sd.vae_scale_factor
        shape = (self.sd.unet.config.in_channels, options["height"] // side, options["width"] // side)
        noise = [torch.randn(shape, generator=generator, device=generator.device) for generator in generators]
        vae, num_pixels = self.decoder.vae, options["height"] * options["width"]
        with _memory_spared(vae, num_pixels, len(embeds)), finite_images(vae):
            result = self.sd(
                prompt_embeds=embeds.to(self.device, dtype),
                negative_prompt_embeds=None if negative is None else negative.to(self.device, dtype),
                latents=torch.stack(noise).to(self.device, dtype),
                generator=list(generators),  # for samplers that draw noise in every step
                **options,
            )
        return list(result.images)


class _StepReport:
    """What diffusers calls after each step."""

    def __init__(self, on_step: StepCallback) -> None:
        self.on_step = on_step

    def __call__(self, pipeline: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        self.on_step(step + 1)
        return values


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for each seed, on the CPU: the same noise on any device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def _memory_spared(vae: Any, num_pixels: int, num_pictures: int) -> Iterator[None]:
    """A VAE that decodes a large picture in tiles, and many of them one by one; what was set before comes back."""
    before = vae.use_tiling, vae.use_slicing
    vae.use_tiling = before[0] or num_pixels > TILED_PIXELS
    vae.use_slicing = before[1] or (num_pictures > 1 and num_pixels * num_pictures > SLICED_PIXELS)
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before

"""KosmosGPipeline: interleaved prompts to images, or to embeddings for any Stable Diffusion pipeline.

`encode_prompt` returns `prompt_embeds` and `negative_prompt_embeds` in the shape of Stable Diffusion's own text
embedding; images are sampled by diffusers' own StableDiffusionPipeline.

Shape letters: B prompts or images, S d conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from PIL import Image
from torch import Tensor

from kgcli.config import OFFLOADS, SamplingConfig, read_sampling
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import UsageError
from kgcli.inference.denoise import StepCallback, denoise, make_scheduler, make_sd, sd_parts
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.inputs import ImageLike, PromptLike, read_negatives, read_prompts
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.runtime import check_quantize
from kgcli.weights.decoder import load_decoder
from kgcli.weights.folder import ModelFolder, open_model
from kgcli.weights.load import load_kosmosg

Images = ImageLike | Sequence[ImageLike | Sequence[ImageLike] | None]


class KosmosGPipeline:
    """A model, its tokenizer and an image decoder as one callable that follows the diffusers API."""

    def __init__(self, model: KosmosG, tokenizer: Tokenizer, decoder: Diffusion) -> None:
        decoder.check_conditioning(model.cfg.aligner.width)
        self.encoder = PromptEncoder(model, tokenizer)
        self.decoder = decoder
        self.sd = make_sd(decoder)

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
        """Load the pipeline of a model folder or Hub id; default: the shipped nano model.

        `decoder` is a diffusers folder or Hub id of the Stable Diffusion v1 family, or one .safetensors file.
        `quantize` (none, 8bit or 4bit) stores the MLLM's linear layers in few bits.

        Raises: MissingError, IncompatibleError, UsageError.

        Example:
            >>> KosmosGPipeline.from_pretrained().dtype
            torch.float32
        """
        check_quantize(quantize, str(device))
        if isinstance(model, ModelFolder):
            model = model if decoder is None else model.with_decoder(str(decoder))
        else:
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
        """The model that encodes prompts."""
        return self.encoder.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer."""
        return self.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """The device that computes; offloaded weights are elsewhere."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of computation."""
        return self.encoder.dtype

    @property
    def components(self) -> dict[str, Any]:
        """The parts of a Stable Diffusion pipeline: `StableDiffusionImg2ImgPipeline(**pipe.components)`."""
        return {**sd_parts(self.decoder), "scheduler": self.make_scheduler()}

    def make_scheduler(self, name: str | None = None) -> Any:
        """Return a scheduler by name (ddim, pndm, dpm++, euler, unipc, lcm), default the model's, for this decoder.

        Raises: UsageError, IncompatibleError.
        """
        return make_scheduler(name or self.model.cfg.generation.scheduler, self.decoder.scheduler_config)

    def make_pipeline(self, kind: Callable[..., Any], **parts: Any) -> Any:
        """Make a diffusers pipeline of the Stable Diffusion v1 family around this decoder, with its other parts."""
        scheduler = parts.pop("scheduler", None) or self.make_scheduler()
        pipeline = make_sd(self.decoder, kind, **parts)
        pipeline.set_progress_bar_config(disable=False)
        pipeline.scheduler = scheduler
        return pipeline

    def to(self, *where: str | torch.device | torch.dtype, dtype: torch.dtype | None = None) -> KosmosGPipeline:
        """Move the pipeline, change its precision, or both; return the pipeline."""
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
        """Keep weights in main memory and move those in use to the device: whole models ("model") or parts of the
        prompt encoder and single layers of the decoder ("sequential", slowest, least memory).

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
        """Encode prompts to `prompt_embeds` and `negative_prompt_embeds`, (B, S, d) each, for any pipeline with this
        decoder.

        Args:
            prompt: text with `<image:PATH>` tags, or with `<image>` where `images` belong; or a list.
            images: images or paths in reading order, one or a list for one prompt, an entry for each of several.
            negative_prompt: one for all or one for each; an empty one is encoded as the start token only.
            num_images_per_prompt: rows per prompt; leave at 1 if the sampling pipeline repeats them.

        Raises: PromptError, UsageError, ImageError.

        Example:
            >>> pipeline = KosmosGPipeline.from_pretrained()
            >>> embeds, negative = pipeline.encode_prompt("a <image:nano/cat.png> in the snow")
            >>> embeds.shape == negative.shape
            True
        """
        prompts, opened = read_prompts(prompt, images)
        negatives = read_negatives(negative_prompt, len(prompts))
        rows = self.encoder.encode(prompts, opened), self.encoder.encode_negatives(negatives)
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
        on_step: StepCallback | None = None,
        **sampling: Any,
    ) -> StableDiffusionPipelineOutput:
        """Generate `num_images_per_prompt` images from each prompt or row of embeddings, as `.images`; `sampling` are
        fields of `SamplingConfig`.

        `generator` is one per image, or one that draws the noise of all of them in turn.

        Example:
            >>> pipeline = KosmosGPipeline.from_pretrained()
            >>> pipeline("a cat in the snow", num_inference_steps=2, width=32, height=32).images[0].size
            (32, 32)
        """
        settings = read_sampling(sampling)
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt is {num_images_per_prompt}; it must be at least 1")
        if prompt is not None:
            if prompt_embeds is not None or negative_prompt_embeds is not None:
                raise UsageError("give either prompt or prompt_embeds; negative_prompt_embeds go with prompt_embeds")
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt, images, negative_prompt, num_images_per_prompt
            )
        elif prompt_embeds is None:
            raise UsageError("give either prompt or prompt_embeds")
        else:
            if images is not None or negative_prompt is not None:
                raise UsageError("images and negative_prompt go with prompt; encode_prompt turns them into embeds")
            prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
            if negative_prompt_embeds is not None:
                negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        generators = [generator] * len(prompt_embeds) if isinstance(generator, torch.Generator) else list(generator)
        images_made = self.sample(
            prompt_embeds, negative_prompt_embeds, generators=generators, sampling=settings, on_step=on_step
        )
        return StableDiffusionPipelineOutput(images=images_made, nsfw_content_detected=None)

    def sample(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None = None,
        *,
        generators: Sequence[torch.Generator],
        sampling: SamplingConfig | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """Sample an image for each row of `prompt_embeds` and its generator; None takes the model's default.

        At a guidance scale of 1 or less negative embeddings are neither used nor computed.
        """
        if len(generators) != len(prompt_embeds):
            raise UsageError(f"{len(prompt_embeds)} images but {len(generators)} generators; give one for each")
        sampling = (sampling or SamplingConfig()).over(self.model.cfg.generation)
        if negative_prompt_embeds is None and (sampling.guidance_scale or 0) > 1:
            negative_prompt_embeds = self.encoder.encode_negatives(read_negatives(None, len(prompt_embeds)))
        embeds, negative = prompt_embeds.to(self.device), negative_prompt_embeds
        return denoise(self.sd, self.decoder, embeds, negative, generators, sampling, on_step=on_step)

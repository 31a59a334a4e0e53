"""Interleaved prompts to pictures: KOSMOS-G reads the prompt, a diffusers Stable Diffusion pipeline draws it.

`encode_prompt` gives `prompt_embeds` and `negative_prompt_embeds` in the shape of Stable Diffusion's own text
embedding, so that any diffusers pipeline of the decoder's family takes them.

Shape letters: B prompts (or pictures), T tokens, N images, Q queries per image, D MLLM width, S d conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from kgcli.data.images import pad_to_square, to_vision_pixels
from kgcli.data.prompt import ImageRef, Prompt, encode
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import IncompatibleError, UsageError
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG, place_images
from kgcli.samplers import make_scheduler

MAX_BATCH = 16  # pictures drawn at once; a longer batch goes in pieces
StepCallback = Callable[[int], None]


class KosmosGPipeline:
    """A model, its tokenizer and an image decoder as one callable."""

    def __init__(self, model: KosmosG, tokenizer: Tokenizer, decoder: Diffusion) -> None:
        decoder.check_conditioning(model.cfg.aligner.width)
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = decoder
        # The scheduler stands in until a call names one; diffusers would change and warn of others.
        stand_in = DDIMScheduler(steps_offset=1, clip_sample=False)
        parts: dict[str, Any] = {"vae": decoder.vae, "unet": decoder.unet, "scheduler": stand_in}
        absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        self.sd: Any = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
        self.sd.set_progress_bar_config(disable=True)
        self._negatives: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.mllm.embedding.weight.device

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[Sequence[Image.Image]] | None = None,
        negative_prompts: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prompt embeddings and those guided away from, (B, S, d) each.

        `images` are the pictures of each prompt in reading order. Without a negative prompt the start token alone
        is guided away from.
        """
        images = images or [[] for _ in prompts]
        for prompt, pictures in zip(prompts, images, strict=True):
            if len(prompt.images) != len(pictures):
                raise UsageError(f"the prompt has {len(prompt.images)} image(s), {len(pictures)} picture(s) were given")
        negatives = negative_prompts or [""] * len(prompts)
        return self._encode(prompts, images), torch.cat([self._encode_negative(text) for text in negatives])

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None = None,
        *,
        seeds: Sequence[int],
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        scheduler: str | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture for each row of `prompt_embeds` and its seed; None takes the model's default.

        At a guidance scale of 1 or less nothing is guided away from and no null rows are computed.
        """
        defaults = self.model.cfg.generation
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        guided = scale > 1
        if guided and negative_prompt_embeds is None:
            negative_prompt_embeds = self._encode_negative("").expand(len(prompt_embeds), -1, -1)
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
            self.sd.scheduler = make_scheduler(scheduler or defaults.scheduler, self.decoder.scheduler_config)
            pictures += self._draw(prompt_embeds[rows], negative, seeds[rows], options)
        return pictures

    def _draw(
        self, embeds: Tensor, negative: Tensor | None, seeds: Sequence[int], options: dict[str, Any]
    ) -> list[Image.Image]:
        """One call of the diffusers pipeline, its noise drawn per picture on the CPU: any device, any batch."""
        unet: Any = self.decoder.unet
        dtype, device = unet.dtype, self.device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        side = self.sd.vae_scale_factor
        shape = (unet.config.in_channels, options["height"] // side, options["width"] // side)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        result = self.sd(
            prompt_embeds=embeds.to(device, dtype),
            negative_prompt_embeds=None if negative is None else negative.to(device, dtype),
            latents=noise.to(device, dtype),
            generator=generators,  # for samplers that draw noise in every step
            **options,
        )
        return list(result.images)

    def _encode(self, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]]) -> Tensor:
        """Conditioning of prompts, right-padded to one length; a picture that occurs often is seen once."""
        cfg = self.model.cfg
        sequences = [encode(prompt.fragments, self.tokenizer, cfg.resampler.num_queries) for prompt in prompts]
        longest = max(len(sequence.token_ids) for sequence in sequences)
        tokens_BT = torch.full((len(sequences), longest), cfg.special_ids.pad)
        image_mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            tokens_BT[row, : len(sequence.token_ids)] = torch.tensor(sequence.token_ids)
            image_mask_BT[row, : len(sequence.image_mask)] = torch.tensor(sequence.image_mask)
        tokens_BT, image_mask_BT = tokens_BT.to(self.device), image_mask_BT.to(self.device)
        token_mask_BT = tokens_BT != cfg.special_ids.pad
        embeddings_BTD = self.model.mllm.embed(tokens_BT)
        refs = [ref for prompt in prompts for ref in prompt.images]
        if refs:
            pictures_NQD = self._see(refs, [picture for pictures in images for picture in pictures])
            embeddings_BTD = place_images(embeddings_BTD, image_mask_BT, pictures_NQD)
        hidden_BTD = self.model.mllm(embeddings_BTD, token_mask_BT)
        return self.model.aligner.encode(hidden_BTD, token_mask_BT)

    def _see(self, refs: Sequence[ImageRef], pictures: Sequence[Image.Image]) -> Tensor:
        """What the MLLM reads of each image, (N, Q, D), times its weight."""
        keys = [(id(picture), ref.fit) for ref, picture in zip(refs, pictures, strict=True)]
        unique = {key: picture for key, picture in zip(keys, pictures, strict=True)}
        size = self.model.cfg.vision.image_size
        pixels = [
            to_vision_pixels(picture if fit == "crop" else pad_to_square(picture), size)
            for (_, fit), picture in unique.items()
        ]
        pixels_N3SS = torch.from_numpy(np.stack(pixels)).to(self.model.mllm.embedding.weight)
        seen_NQD = self.model.resampler(self.model.vision(pixels_N3SS))
        rows = {key: row for row, key in enumerate(unique)}
        weights_N11 = seen_NQD.new_tensor([ref.weight for ref in refs])[:, None, None]
        return seen_NQD[[rows[key] for key in keys]] * weights_N11

    def _encode_negative(self, text: str) -> Tensor:
        """(1, S, d) of a negative prompt, or of the start token alone; kept for the next call."""
        if text not in self._negatives:
            self._negatives[text] = self._encode([Prompt(parts=(text,) if text.strip() else ())], [[]])
        return self._negatives[text]


class _StepReport:
    """What diffusers calls after each step."""

    def __init__(self, on_step: StepCallback) -> None:
        self.on_step = on_step

    def __call__(self, pipeline: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        self.on_step(step + 1)
        return values


def check_size(decoder: Diffusion, width: int, height: int) -> None:
    """Refuse a size that the decoder's latents cannot have.

    Raises: IncompatibleError.
    """
    factor = decoder.pixels_per_latent
    if width % factor or height % factor:
        raise IncompatibleError(f"{width} x {height} pixels do not divide by this decoder's factor of {factor}")

"""The stage that trains a text-conditional U-Net, a small Stable Diffusion; its result is a diffusers folder.

Its base, `CaptionedStage`, is also that of the U-Net's adapters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.model.diffusion import Diffusion, Steer
from kgcli.model.randomness import StepRandom
from kgcli.model.timesteps import TimestepOptions
from kgcli.training.preview import NUM_PREVIEW, preview_images
from kgcli.training.stages.base import Setup, Stage
from kgcli.training.stages.start import copy_folder
from kgcli.weights.decoder import load_decoder
from kgcli.weights.safetensors import assign_weights

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class CaptionedOptions(TimestepOptions):
    """null_text: probability of the empty caption. subject: extra weight of the error inside subjects, where the data
    have masks."""

    null_text: float = 0.1
    subject: float = 1.0


class UnetOptions(CaptionedOptions):
    """train_text_encoder: the text encoder trains with the U-Net, as that of latent diffusion's first text-to-image
    model did; the result holds it in place of the one it started from."""

    train_text_encoder: bool = False


class CaptionedStage(Stage):
    """The base of a U-Net and its adapters: captions encoded by a CLIP text encoder, and the noise-prediction error."""

    needs = frozenset({"clip_tokens", "moments"})
    Options = CaptionedOptions
    options: CaptionedOptions
    uses_pool = True
    compiles: ClassVar[tuple[str, ...]] = ("unet",)
    diffusion: Diffusion
    null_tokens: Tensor  # (1, L) the empty caption

    def load_text(self, folder: Path) -> None:
        """Load the tokenizer and text encoder of a folder."""
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.register_buffer("null_tokens", self._tokenize([""]), persistent=False)

    def steer(self, batch: Batch) -> Steer | None:
        """Return the additional inputs of the U-Net, as a ControlNet's residuals; None: none."""
        return None

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.setup.image_size, 0, clip_tokenizer=self.tokenizer, pool=pool)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"unet": [self.diffusion.unet]}

    def idle_parts(self) -> list[nn.Module]:
        return [self.diffusion.vae]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.clip_tokens is not None and batch.moments is not None and batch.subject is not None
        drop = random.uniform().to(batch.clip_tokens.device)
        dropped = (drop < self.options.null_text)[:, None]
        conditioning = self._encode(torch.where(dropped, self.null_tokens, batch.clip_tokens))
        mean, logvar = batch.moments.chunk(2, dim=1)
        latents = self.diffusion.sample_latents(mean, logvar, random=random)
        weight = 1.0 + self.options.subject * batch.subject
        loss = self.diffusion.noise_loss(
            latents,
            conditioning,
            random=random,
            timesteps_B=self.options.draw_timesteps(random, self.diffusion.num_train_timesteps),
            weight_BHW=weight,
            steer=self.steer(batch),
        )
        return {"diffusion": loss}

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert batch.clip_tokens is not None
        return preview_images(
            self.diffusion,
            self._encode(batch.clip_tokens[:NUM_PREVIEW]),
            self._encode(self.null_tokens),
            generator,
            side=self.setup.image_size,
            guidance_scale=3.0,
            steer=self.steer(batch),
        )

    def _encode(self, tokens: Tensor) -> Tensor:
        """Return the conditioning of captions, (B, L, d); it has a graph only where the text encoder trains."""
        return self.text(tokens).last_hidden_state

    def _tokenize(self, captions: list[str]) -> Tensor:
        out = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return out.input_ids


class UnetStage(CaptionedStage):
    """Text to latents: a U-Net that attends to the CLIP text encoder, as in Stable Diffusion.

    With `init_from.unet`, a diffusers folder, it continues from that folder's weights. The text encoder is always that
    of `init_from.clip`, so a U-Net whose text encoder trained with it is named in both.
    """

    Options = UnetOptions
    options: UnetOptions

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.load_text(self.setup.source("clip"))
        self.trains = ("diffusion.unet.", "text.") if self.options.train_text_encoder else ("diffusion.unet.",)
        unet = UNet2DConditionModel.from_config(self.setup.part("unet"))
        if "unet" in setup.init_from:
            start = load_decoder(self.setup.source("unet"), local_files_only=True).unet
            assign_weights(unet, start.state_dict(), source=str(self.setup.source("unet")))
        vae = AutoencoderKL.from_pretrained(self.setup.source("vae") / "vae")
        self.diffusion = Diffusion(unet, vae, self.setup.part("scheduler"))
        self.options.check_timesteps(self.diffusion.num_train_timesteps)
        self.diffusion.to(memory_format=torch.channels_last)

    def export(self, folder: Path) -> None:
        self.diffusion.unet.save_pretrained(folder / "unet")
        DDIMScheduler.from_config(self.diffusion.scheduler_config).save_pretrained(folder / "scheduler")
        copy_folder(self.setup.source("vae") / "vae", folder / "vae")
        copy_folder(self.setup.source("clip") / "tokenizer", folder / "tokenizer")
        if self.options.train_text_encoder:
            self.text.save_pretrained(folder / "text_encoder")
        else:
            copy_folder(self.setup.source("clip") / "text_encoder", folder / "text_encoder")
        (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", "utf-8")

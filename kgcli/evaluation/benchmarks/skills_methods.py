"""Who makes the pictures that are scored: models, and the references they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from kgcli.data.images import to_vae_pixels
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.evaluation.benchmarks.skills import SIZE, Case, other_subject
from kgcli.inference.denoise import seeded
from kgcli.model.finite import finite_images
from kgcli.world.spec import render

if TYPE_CHECKING:
    from kgcli.inference.model import Model

BATCH = 16  # pictures drawn at once

Painter = Callable[[Sequence[Case]], list[Image.Image]]


class ModelPainter:
    """The model as `kg generate` and `kg edit` run it, several prompts at once."""

    def __init__(self, model: Model) -> None:
        self.pipeline = model.pipeline

    def __call__(self, cases: Sequence[Case]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for chunk in _chunks(cases):
            embeds = self.pipeline.encode_prompt([as_prompt(case) for case in chunk], [case.images for case in chunk])
            pictures += self.pipeline.draw(*embeds, generators=seeded([case.seed for case in chunk]))
        return pictures


class BasePainter:
    """The decoder with its own text encoder, as any text-to-image Stable Diffusion runs."""

    def __init__(self, model: Model, local_files_only: bool = True) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        where, fetch = model.folder.decoder, {"local_files_only": local_files_only}
        self.pipeline = model.pipeline
        self.tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **fetch)
        encoder = CLIPTextModel.from_pretrained(where, subfolder="text_encoder", **fetch)
        self.encoder = encoder.to(model.pipeline.device).eval()

    def __call__(self, cases: Sequence[Case]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for chunk in _chunks(cases):
            negative = self.encode([""]).expand(len(chunk), -1, -1)
            captions = self.encode([case.words for case in chunk])
            pictures += self.pipeline.draw(captions, negative, generators=seeded([case.seed for case in chunk]))
        return pictures

    @torch.no_grad()
    def encode(self, captions: list[str]) -> torch.Tensor:
        """What the U-Net attends to, (captions, tokens, width)."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.encoder(tokens.to(self.pipeline.device)).last_hidden_state


class DecodedPainter:
    """The right picture once through the decoder's VAE: the best the U-Net could do."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, cases: Sequence[Case]) -> list[Image.Image]:
        return through_vae(self.model, paint_truth(cases))


def through_vae(model: Model, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures once through the decoder's VAE."""
    decoder, rebuilt = model.pipeline.decoder, []
    for start in range(0, len(pictures), BATCH):
        pixels = np.stack([to_vae_pixels(picture, SIZE) for picture in pictures[start : start + BATCH]])
        mean, _ = decoder.moments(torch.from_numpy(pixels).to(model.pipeline.device))
        with finite_images(decoder.vae):
            decoded = decoder.decode(mean * decoder.vae.config.scaling_factor)
        values = (decoded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        rebuilt += [Image.fromarray(value) for value in values]
    return rebuilt


def paint_truth(cases: Sequence[Case]) -> list[Image.Image]:
    """The right pictures: the ceiling."""
    return [render(case.spec, SIZE).picture for case in cases]


def paint_other(cases: Sequence[Case]) -> list[Image.Image]:
    """The right pictures but of other individuals: the floor."""
    return [render(other_subject(case.spec, np.random.default_rng(case.seed)), SIZE).picture for case in cases]


def paint_copy(cases: Sequence[Case]) -> list[Image.Image]:
    """The first picture of each prompt, unchanged; cases must have one."""
    return [case.images[0] for case in cases]


def has_text_encoder(model: Model) -> bool:
    """Whether the decoder brings the text encoder that `BasePainter` needs."""
    return (Path(model.folder.decoder) / "text_encoder" / "config.json").is_file()


def as_prompt(case: Case) -> Prompt:
    """The case's prompt as the command line would read it."""
    parts = tuple(part if isinstance(part, str) else ImageRef(path="picture.png", fit="crop") for part in case.parts)
    return Prompt(parts=parts)


def _chunks(cases: Sequence[Case]) -> list[Sequence[Case]]:
    return [cases[start : start + BATCH] for start in range(0, len(cases), BATCH)]

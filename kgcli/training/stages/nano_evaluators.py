"""The stages that train the feature extractors of nano evaluation: a CLIP and a self-supervised ViT.

No generator is trained with them. Shape letters: B samples, V views of each, S pixels, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.sources.world import draw
from kgcli.model.nano_evaluators import EvalClip, EvalVit
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup, Stage, Whole, alone
from kgcli.training.stages.clip import caption_contrast, clip_tokenizer
from kgcli.training.stages.nano_recognisers import degrade, stack_views
from kgcli.world.view import VIEW_SIZE

MAX_LOG_SCALE = 4.6  # of similarities: a hundred, as in CLIP


class ViewCollator(Collator):
    """All images of each sample as uint8, and its caption's tokens where they are needed."""

    def __call__(self, samples: Iterable[Sample], rows: list[int]) -> Batch:
        samples = list(samples)
        views = np.stack([stack_views(sample.images) for sample in samples])
        words = super().__call__(samples, rows)
        return Batch(views=torch.from_numpy(views).permute(0, 1, 4, 2, 3), clip_tokens=words.clip_tokens)


class EvalClipOptions(Strict):
    """projection: width of the shared space. clip_vocab: pieces of the tokenizer. captions: sentences to train it
    on. blur, noise: as of the recognisers."""

    projection: int = 128
    clip_vocab: int = 900
    captions: int = 8000
    blur: float = 0.7
    noise: float = 0.05


class EvalDinoOptions(Strict):
    """width: of the features. temperature: of the contrast. crop: least fraction of an image's side that a view keeps.
    blur, noise: as of the recognisers."""

    width: int = 128
    temperature: float = 0.1
    crop: float = 0.6
    blur: float = 0.7
    noise: float = 0.05


class EvalClipStage(Stage):
    """Images and captions to one space by contrast, with a tokenizer of its own."""

    needs = frozenset({"views", "clip_tokens"})
    Options = EvalClipOptions
    options: EvalClipOptions
    trains = ("clip.",)
    contrasts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        text, num = setup.part("text"), self.options.captions
        captions = [draw({"captioned": 1.0}, setup.seed, index, setup.image_size).caption for index in range(num)]
        length = int(text["max_position_embeddings"])
        tokenizer = clip_tokenizer(captions, self.options.clip_vocab, length)
        self.clip = EvalClip(**setup.part("pictures"), width=self.options.projection, text=text, tokenizer=tokenizer)
        self.clip.to(memory_format=torch.channels_last)

    def collator(self, pool: Pool | None) -> Collator:
        return ViewCollator(self.needs, self.setup.image_size, VIEW_SIZE, clip_tokenizer=self.clip.tokenizer)

    def forward(self, batch: Batch, random: StepRandom, whole: Whole = alone) -> dict[str, Tensor]:
        assert batch.views is not None and batch.clip_tokens is not None
        blur, noise = self.options.blur, self.options.noise
        pixels_B3SS = degrade(batch.views[:, 0], random, blur=blur, noise=noise)
        image_BE, text_BE, tokens_BL = whole(
            self.clip.embed_images(pixels_B3SS), self.clip.embed_tokens(batch.clip_tokens), batch.clip_tokens
        )
        logits_BB = image_BE @ text_BE.T * self.clip.log_scale.clamp(max=MAX_LOG_SCALE).exp()
        return {"contrast": caption_contrast(logits_BB, tokens_BL)}

    def export(self, folder: Path) -> None:
        self.clip.save(folder / "eval_clip", self.setup.image_size)


class EvalDinoStage(Stage):
    """Two random views of a subject, before two backgrounds, to one feature and away from all others, without labels.

    Source: SimCLR (arXiv:2002.05709), with backgrounds exchanged as in arXiv:2103.12719. Colours are hardly changed:
    they identify an instance.
    """

    needs = frozenset({"views"})
    kinds = frozenset({"rescened"})
    Options = EvalDinoOptions
    options: EvalDinoOptions
    trains = ("dino.",)
    compiles = ("dino",)
    contrasts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.dino = EvalVit(setup.part("vit"), self.options.width)

    def collator(self, pool: Pool | None) -> Collator:
        return ViewCollator(self.needs, self.setup.image_size, VIEW_SIZE)

    def parts(self) -> dict[str, list[torch.nn.Module]]:
        return {"dino": [self.dino]}

    def forward(self, batch: Batch, random: StepRandom, whole: Whole = alone) -> dict[str, Tensor]:
        assert batch.views is not None
        blur, noise = self.options.blur, self.options.noise
        random = random.repeated(batch.views.shape[1])
        pixels = degrade(batch.views.transpose(0, 1).flatten(0, 1), random, blur=blur, noise=noise)
        features = torch.cat(whole(*self.dino(self._cropped(pixels, random)).chunk(2)))
        num = len(features) // 2
        logits = features @ features.T / self.options.temperature
        logits = logits.masked_fill(torch.eye(2 * num, dtype=torch.bool, device=logits.device), -torch.inf)
        partner = torch.arange(2 * num, device=logits.device).roll(num)
        return {"contrast": F.cross_entropy(logits, partner)}

    def export(self, folder: Path) -> None:
        self.dino.save(folder / "eval_dino", self.setup.image_size)

    def _cropped(self, pixels_B3SS: Tensor, random: StepRandom) -> Tensor:
        """Return a random crop of each image, of random size and aspect ratio, half of them mirrored."""
        num, least = len(pixels_B3SS), self.options.crop
        draws_5B = random.uniform(5).T.to(pixels_B3SS.device)
        wide_B, high_B = least + (1.0 - least) * draws_5B[0], least + (1.0 - least) * draws_5B[1]
        theta_B23 = torch.zeros(num, 2, 3, device=pixels_B3SS.device)
        theta_B23[:, 0, 0] = torch.where(draws_5B[2] < 0.5, wide_B, -wide_B)
        theta_B23[:, 1, 1] = high_B
        theta_B23[:, 0, 2] = (1.0 - wide_B) * (2.0 * draws_5B[3] - 1.0)
        theta_B23[:, 1, 2] = (1.0 - high_B) * (2.0 * draws_5B[4] - 1.0)
        grid = F.affine_grid(theta_B23, list(pixels_B3SS.shape), align_corners=False)
        return F.grid_sample(pixels_B3SS, grid, padding_mode="border", align_corners=False)

"""Stage 2 of the paper, align, and a stage of our own after it that aligns images too: both without a U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup
from kgcli.training.stages.kosmosg import EncoderOptions, KosmosGStage


class AlignStage(KosmosGStage):
    """Stage 2, text only: AlignerNet's conditioning is pulled to the CLIP text encoder's, and back to MLLM states.

    Source: KOSMOS-G (arXiv:2310.02992), section 2.2; the factor S/T and the pads in the reconstruction are the
    released code's.
    """

    needs = frozenset({"tokens", "clip_tokens"})
    trains = ("model.aligner.",)
    packs = False
    takes_hidden = frozenset({"full"})

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = self.load_tokenizer()
        self.model = setup.load_model(with_aligner_decoder=True, aligner=self.other_aligner())
        self.load_text("text")

    def padding(self) -> int:
        return self.tokenizer.special_ids.pad

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        with torch.no_grad():
            if batch.hidden is None:
                hidden_BTD = self.model.hidden(batch.tokens, batch.token_mask, batch.image_mask)
            else:
                hidden_BTD = batch.hidden[:, : batch.tokens.shape[1]]
        aligned_BSd = self.model.aligner.encode(hidden_BTD, batch.token_mask)
        losses = {"mse": self.distance_from_words(aligned_BSd, batch)}
        if self.model.aligner.decoder is None:
            return losses
        num_tokens = hidden_BTD.shape[1]
        rebuilt_BTD = self.model.aligner.decode(aligned_BSd, num_tokens)
        factor = aligned_BSd.shape[1] / num_tokens
        return losses | {"reconstruction": F.mse_loss(rebuilt_BTD.float(), hidden_BTD.float()) * factor}


class AlignImagesStage(KosmosGStage):
    """Between stages 2 and 3, in the nano world: MLLM, resampler and AlignerNet learn to condition on a prompt's images
    as the CLIP text encoder conditions on words for them, without a U-Net.

    It is no stage of the paper's. A sample's caption is its prompt with words in place of the images; of an edit, words
    for the result.
    """

    needs = frozenset({"tokens", "images", "clip_tokens"})
    Options = EncoderOptions
    options: EncoderOptions

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = self.load_tokenizer()
        self.model = setup.load_model(aligner=self.other_aligner())
        self.load_text("text")
        self.trains = (*self.trained_encoder(self.options.vision_blocks), "model.aligner.encoder.")

    def collator(self, pool: Pool | None) -> Collator:
        collator = super().collator(pool)
        collator.vision_fit = self.model.cfg.image_fit  # images of prompts become square as in inference
        return collator

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        aligned_BSd = self.model.encode(batch.tokens, batch.token_mask, batch.image_mask, batch.images)
        return {"mse": self.distance_from_words(aligned_BSd, batch)}

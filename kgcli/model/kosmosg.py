"""The figure as code: vision tower, resampler, MLLM and AlignerNet make one conditioning of one prompt.

Shape letters: B batch, T tokens, N images of the whole batch, S side in pixels (conditioning: its length),
Q queries per image, D MLLM width, d conditioning width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kgcli.config import ModelConfig
from kgcli.errors import UsageError
from kgcli.model.aligner import AlignerNet
from kgcli.model.mllm import MLLM
from kgcli.model.resampler import Resampler
from kgcli.model.vision import VisionTower


class KosmosG(nn.Module):
    """Everything that reads a prompt; the image decoder is apart.

    Source: KOSMOS-G (arXiv:2310.02992), Figure 2.
    """

    def __init__(self, cfg: ModelConfig, *, with_aligner_decoder: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.quantize = "none"  # how the MLLM's linear layers are held
        self.vision = VisionTower(cfg.vision)
        self.resampler = Resampler(cfg.resampler, cfg.vision.width, cfg.mllm.width)
        self.mllm = MLLM(cfg.mllm, cfg.special_ids.pad)
        self.aligner = AlignerNet(cfg.aligner, cfg.mllm.width, with_decoder=with_aligner_decoder)

    def encode(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None
    ) -> Tensor:
        """Read interleaved prompts; return what the U-Net cross-attends to.

        Shapes:
            token_mask_BT: True = a real token; image_mask_BT: True = a slot for one of an image's Q vectors
            images_N3SS: in reading order over the whole batch; N may be 0
            returns: (B, S, d), the shape of the decoder's own text embedding
        """
        hidden_BTD = self.hidden(tokens_BT, token_mask_BT, image_mask_BT, images_N3SS)
        return self.aligner.encode(hidden_BTD, token_mask_BT)

    def hidden(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None
    ) -> Tensor:
        """The MLLM's half of `encode`: hidden states (B, T, D)."""
        embeddings_BTD = self.embed(tokens_BT, image_mask_BT, images_N3SS)
        return self.mllm(embeddings_BTD, token_mask_BT)

    def embed(self, tokens_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None) -> Tensor:
        """Words and pictures in one sequence, (B, T, D)."""
        words_BTD = self.mllm.embed(tokens_BT)
        num_images = 0 if images_N3SS is None else len(images_N3SS)
        self._check_slots(image_mask_BT, num_images)
        if images_N3SS is None or num_images == 0:
            return words_BTD
        return place_images(words_BTD, image_mask_BT, self.resampler(self.vision(images_N3SS)))

    def encode_null(self, batch_size: int = 1) -> Tensor:
        """The conditioning of no prompt at all, (B, S, d): the start token alone."""
        tokens_11 = torch.full((1, 1), self.cfg.special_ids.bos, device=self.mllm.embedding.weight.device)
        mask_11 = torch.ones_like(tokens_11, dtype=torch.bool)
        return self.encode(tokens_11, mask_11, ~mask_11).expand(batch_size, -1, -1)

    def _check_slots(self, image_mask_BT: Tensor, num_images: int) -> None:
        slots = int(image_mask_BT.sum())
        per_image = self.cfg.resampler.num_queries
        if slots != num_images * per_image:
            raise UsageError(
                f"the prompts hold {slots} image slots but {num_images} image(s) of {per_image} slots each were given; "
                "give one image per place, in reading order over the whole batch"
            )


def place_images(words_BTD: Tensor, image_mask_BT: Tensor, pictures_NQD: Tensor) -> Tensor:
    """The word embeddings with picture vectors in the masked places, in row-major order."""
    return words_BTD.masked_scatter(image_mask_BT[..., None], pictures_NQD.to(words_BTD.dtype))

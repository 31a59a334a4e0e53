"""The prompt encoder: vision tower, resampler, MLLM and AlignerNet turn a prompt into a conditioning.

Shape letters: B batch, T tokens, N images of the whole batch, S side in pixels (conditioning: its length),
Q queries per image, D MLLM width, d conditioning width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from kgcli.config import ModelConfig
from kgcli.errors import UsageError
from kgcli.model.aligner import AlignerNet
from kgcli.model.mllm import MLLM
from kgcli.model.resampler import Resampler
from kgcli.model.vision import VisionTower

Images = Tensor | Callable[[], Tensor] | None
Lend = Callable[..., AbstractContextManager[None]]


def stay(*parts: nn.Module) -> AbstractContextManager[None]:
    """Return a context that leaves parts where they are."""
    return nullcontext()


class KosmosG(nn.Module):
    """The prompt encoder; the image decoder is separate (`Diffusion`).

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
        self,
        tokens_BT: Tensor,
        token_mask_BT: Tensor,
        image_mask_BT: Tensor,
        images: Images = None,
        lend: Lend = stay,
    ) -> Tensor:
        """Encode interleaved prompts; return what the U-Net cross-attends to.

        Args:
            images: pixels, or a function that returns cached vectors of `see`
            lend: a context that holds parts on the compute device; the default leaves them where they are

        Shapes:
            token_mask_BT: True = a real token; image_mask_BT: True = a slot for one of an image's Q vectors
            images: (N, 3, S, S), or (N, Q, D) of the function, in reading order over the whole batch; N may be 0
            returns: (B, S, d), the shape of the decoder's own text embedding
        """
        hidden_BTD = self.hidden(tokens_BT, token_mask_BT, image_mask_BT, images, lend)
        with lend(self.aligner):
            return self.aligner.encode(hidden_BTD, token_mask_BT)

    def hidden(
        self,
        tokens_BT: Tensor,
        token_mask_BT: Tensor,
        image_mask_BT: Tensor,
        images: Images = None,
        lend: Lend = stay,
    ) -> Tensor:
        """Return the MLLM's hidden states, (B, T, D)."""
        embeddings_BTD = self.embed(tokens_BT, image_mask_BT, images, lend)
        with lend(self.mllm):
            return self.mllm(embeddings_BTD, token_mask_BT)

    def embed(self, tokens_BT: Tensor, image_mask_BT: Tensor, images: Images = None, lend: Lend = stay) -> Tensor:
        """Embed words and images as one sequence, (B, T, D)."""
        with lend(self.mllm.embedding):
            words_BTD = self.mllm.embed(tokens_BT)
        if isinstance(images, Tensor):
            self._check_slots(image_mask_BT, len(images))  # before the costly part
            if self.training and not len(images) and any(p.requires_grad for p in self.resampler.parameters()):
                return words_BTD + self._see_nothing(images).to(words_BTD.dtype)
            images_NQD = self.see(images, lend) if len(images) else None
        else:
            images_NQD = None if images is None else images()
            self._check_slots(image_mask_BT, 0 if images_NQD is None else len(images_NQD))
        if images_NQD is None:
            return words_BTD
        return words_BTD.masked_scatter(image_mask_BT[..., None], images_NQD.to(words_BTD.dtype))

    def see(self, images_N3SS: Tensor, lend: Lend = stay) -> Tensor:
        """Encode images to their vectors in the MLLM's sequence, (N, Q, D)."""
        with lend(self.vision, self.resampler):
            return self.resampler(self.vision(images_N3SS))

    def _see_nothing(self, images_0: Tensor) -> Tensor:
        """Return zero as a function of the parts that encode images.

        Every step then gives each trained parameter a gradient, which processes with and without images can add up.
        """
        side = self.cfg.vision.image_size
        return 0.0 * self.see(images_0.new_zeros(1, 3, side, side)).sum()

    def encode_null(self, batch_size: int = 1) -> Tensor:
        """Encode the empty prompt, the start token alone, to (B, S, d)."""
        tokens_11 = torch.full((1, 1), self.cfg.special_ids.bos, device=self.mllm.embedding.weight.device)
        mask_11 = torch.ones_like(tokens_11, dtype=torch.bool)
        return self.encode(tokens_11, mask_11, ~mask_11).expand(batch_size, -1, -1)

    def _check_slots(self, image_mask_BT: Tensor, num_images: int) -> None:
        slots = int(image_mask_BT.sum())
        per_image = self.cfg.resampler.num_queries
        if slots != num_images * per_image:
            raise UsageError(
                f"the prompts hold {slots} image slots but {num_images} image(s) of {per_image} slots each were given; "
                "give one image per slot group, in reading order over the whole batch"
            )

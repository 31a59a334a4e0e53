"""The multimodal language model: a causal Magneto decoder over words and images.

Shape letters: B batch, T tokens, D width, W vocabulary.

Source: KOSMOS-1 (arXiv:2302.14045) and Magneto (arXiv:2210.06423), as the published KOSMOS-G code computes them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgcli.config import MLLMConfig
from kgcli.model.layers import TransformerStack
from kgcli.model.packing import Packing


class MLLM(nn.Module):
    """A causal decoder from embeddings to the last layer's hidden states.

    Shapes:
        embeddings_BTD, token_mask_BT (True = a real token, pads to the right only) -> (B, T, D); packed, pads give zero
    """

    def __init__(self, cfg: MLLMConfig, pad_id: int) -> None:
        super().__init__()
        self.scale = math.sqrt(cfg.width)
        self.row_tokens: int | None = None  # of rows that several sequences share; None: a row each
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.width, padding_idx=pad_id)
        self.dropout = nn.Dropout(cfg.dropout)
        self.stack = TransformerStack(
            cfg.width,
            cfg.num_heads,
            cfg.ffn_width,
            cfg.num_layers,
            init_gain=math.sqrt(math.log(2 * cfg.num_layers)),
            dropout=cfg.dropout,
        )
        self._initialise_embedding(pad_id)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Embed words, not yet scaled: image vectors are inserted first."""
        return self.embedding(tokens_BT)

    def forward(self, embeddings_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        x_BTD = self.dropout(self.positioned(embeddings_BTD, token_mask_BT))
        if self.row_tokens is not None:
            packing = Packing.plan(token_mask_BT, self.row_tokens)
            return packing.unpack(self.stack(packing.pack(x_BTD), mask_BT=packing.mask_RLL))
        # No key padding mask, as published: with pads on the right, causality hides them from every real token.
        return self.stack(x_BTD, causal=True)

    def positioned(self, embeddings_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Scale embeddings (words and images) to unit size and add positions: the first layer's input."""
        positions_BTD = sinusoids(token_mask_BT, embeddings_BTD.shape[-1])
        return self.scale * embeddings_BTD + positions_BTD.to(embeddings_BTD.dtype)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Return next-token logits, (B, T, W); the output map is tied to the word embedding."""
        return F.linear(hidden_BTD, self.embedding.weight)

    @torch.no_grad()
    def _initialise_embedding(self, pad_id: int) -> None:
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        self.embedding.weight[pad_id].zero_()


def sinusoids(token_mask_BT: Tensor, width: int) -> Tensor:
    """Fixed position vectors, (B, T, width): sines then cosines; zero at pads.

    The first token has position 2: positions count from fairseq's padding index, 1.
    """
    half = width // 2
    positions_BT = 1 + token_mask_BT.cumsum(dim=1)
    exponents = torch.arange(half, device=token_mask_BT.device, dtype=torch.float32)
    frequencies = torch.exp(exponents * -(math.log(10000) / (half - 1)))
    angles_BTF = positions_BT[..., None].float() * frequencies
    return torch.cat([angles_BTF.sin(), angles_BTF.cos()], dim=-1) * token_mask_BT[..., None]

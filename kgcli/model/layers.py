"""Building blocks of the towers: attention, feed-forward and the Magneto (sub-LN) layer.

Shape letters: B batch, T positions of the queries, K positions of the keys, D width, h heads.

Source: Magneto (arXiv:2210.06423) for the sub-LN layer and its initialisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5  # every layer norm of the published model


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a memory.

    Shapes:
        x_BTD, memory_BKD -> (B, T, D); key_mask_BK, or (B, T, K) by query, is True where a key takes part
    """

    def __init__(self, width: int, num_heads: int, *, inner_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout  # of the attention weights
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.inner_norm = layer_norm(width) if inner_norm else nn.Identity()
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BTD: Tensor, memory_BKD: Tensor, *, key_mask_BK: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        mixed_BhTd = F.scaled_dot_product_attention(
            self._split(self.q_proj(x_BTD)),
            self._split(self.k_proj(memory_BKD)),
            self._split(self.v_proj(memory_BKD)),
            attn_mask=None if key_mask_BK is None else _for_heads(key_mask_BK),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return self.out_proj(self.inner_norm(rearrange(mixed_BhTd, "b h t d -> b t (h d)")))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return rearrange(x_BTD, "b t (h d) -> b h t d", h=self.num_heads)


def _for_heads(mask: Tensor) -> Tensor:
    """Return a mask of keys, (B, K) or (B, T, K), as (B, 1, 1 or T, K)."""
    return mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU and a layer norm between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.hidden_norm = layer_norm(hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner = self.fc1(x_BTD)
        # In half precision, the published model computes the GELU alone in float32.
        activated = F.gelu(inner.float()).to(inner.dtype)
        return self.fc2(self.hidden_norm(activated))


class TransformerLayer(nn.Module):
    """A pre-norm layer with sub-LN: self-attention, optionally cross-attention, feed-forward."""

    def __init__(
        self, width: int, num_heads: int, ffn_width: int, *, cross_attention: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention_norm = layer_norm(width)
        self.self_attention = Attention(width, num_heads, inner_norm=True)
        self.cross_attention_norm = layer_norm(width) if cross_attention else None
        self.cross_attention = Attention(width, num_heads) if cross_attention else None
        self.ffn_norm = layer_norm(width)
        self.ffn = FeedForward(width, ffn_width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        causal: bool = False,
        mask_BT: Tensor | None = None,
        memory_BKD: Tensor | None = None,
        memory_mask_BK: Tensor | None = None,
    ) -> Tensor:
        normed_BTD = self.self_attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.self_attention(normed_BTD, normed_BTD, key_mask_BK=mask_BT, causal=causal))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert memory_BKD is not None, "a layer with cross-attention needs a memory"
            queries_BTD = self.cross_attention_norm(x_BTD)
            x_BTD = x_BTD + self.dropout(self.cross_attention(queries_BTD, memory_BKD, key_mask_BK=memory_mask_BK))
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))


class TransformerStack(nn.Module):
    """Transformer layers in sequence, then a layer norm; `forward` takes the arguments of one layer.

    `init_gain` multiplies weights and biases of the value, output and feed-forward maps (Magneto's gamma);
    cross-attention is not scaled, as in the published model.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        ffn_width: int,
        num_layers: int,
        *,
        init_gain: float,
        cross_attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(width, num_heads, ffn_width, cross_attention=cross_attention, dropout=dropout)
            for _ in range(num_layers)
        )
        self.final_norm = layer_norm(width)
        self._scale_initial_weights(init_gain)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        causal: bool = False,
        mask_BT: Tensor | None = None,
        memory_BKD: Tensor | None = None,
        memory_mask_BK: Tensor | None = None,
    ) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, causal=causal, mask_BT=mask_BT, memory_BKD=memory_BKD, memory_mask_BK=memory_mask_BK)
        return self.final_norm(x_BTD)

    @torch.no_grad()
    def _scale_initial_weights(self, gain: float) -> None:
        for name, parameter in self.named_parameters():
            is_scaled = any(part in name.split(".") for part in ("fc1", "fc2", "v_proj", "out_proj"))
            if is_scaled and "cross_attention" not in name:
                parameter.mul_(gain)


def layer_norm(width: int) -> nn.LayerNorm:
    """A layer norm with the published model's epsilon."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)

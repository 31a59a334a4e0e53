"""Attentive pooling: many vision tokens in, a fixed few out.

Shape letters: N images, P vision tokens, V vision width, Q queries, D MLLM width, K keys (P + Q).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kgcli.config import ResamplerConfig
from kgcli.model.layers import Attention

QKV_GAIN = 2**-0.5  # of the Xavier initialisation of the query, key and value maps


class Resampler(nn.Module):
    """Summarise each image as Q tokens of the MLLM's width: one cross-attention, no residual, no norm.

    Shapes:
        patches_NPV -> (N, Q, D)

    Source: KOSMOS-G (arXiv:2310.02992), after the resampler of Flamingo (arXiv:2204.14198).
    """

    def __init__(self, cfg: ResamplerConfig, vision_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, width)
        self.queries = nn.Parameter(torch.randn(cfg.num_queries, width))
        self.attention = Attention(width, cfg.num_heads, dropout=cfg.dropout)
        for linear in (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=QKV_GAIN)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)

    def forward(self, patches_NPV: Tensor) -> Tensor:
        queries_NQD = self.queries.expand(len(patches_NPV), -1, -1)
        # The queries are also keys, so one that finds nothing in the image can keep its own value.
        context_NKD = torch.cat([self.project(patches_NPV), queries_NQD], dim=1)
        return self.attention(queries_NQD, context_NKD)

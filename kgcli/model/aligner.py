"""AlignerNet: from the MLLM's hidden states to the conditioning of the image decoder, and back.

Shape letters: B batch, T tokens, D MLLM width, S conditioning length, d conditioning width.

Source: KOSMOS-G (arXiv:2310.02992), section 2.2, as the published code computes it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgcli.config import AlignerConfig
from kgcli.errors import UsageError
from kgcli.model.layers import TransformerStack

FIRST_POSITION = 2  # fairseq habit: rows 0 and 1 of a position table are unused


class AlignerNet(nn.Module):
    """Map MLLM states to the space of the decoder's text encoder; the inverse map serves the alignment stage only."""

    def __init__(self, cfg: AlignerConfig, mllm_width: int, *, with_decoder: bool = True) -> None:
        super().__init__()
        self.encoder = ENCODERS[cfg.kind](cfg, mllm_width)
        has_way_back = with_decoder and cfg.kind == "full"
        self.decoder = AlignerDecoder(cfg, mllm_width) if has_way_back else None

    def encode(self, hidden_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Return the conditioning, (B, S, d), of the real tokens; padding is masked."""
        return self.encoder(hidden_BTD, token_mask_BT)

    def decode(self, conditioning_BSd: Tensor, num_tokens: int) -> Tensor:
        """Reconstruct hidden states, (B, num_tokens, D), from the conditioning; padding is not masked."""
        assert self.decoder is not None, "this AlignerNet was built without its decoder half"
        return self.decoder(conditioning_BSd, num_tokens)


class AlignerEncoder(nn.Module):
    """Hidden states of any length -> conditioning of S vectors.

    Shapes:
        hidden_BTD, token_mask_BT -> (B, S, d)
    """

    def __init__(self, cfg: AlignerConfig, mllm_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(mllm_width, cfg.width)
        self.positions = nn.Parameter(torch.randn(cfg.max_positions, cfg.width))
        depth = cfg.num_layers
        encoder_gain = math.sqrt(math.log(3 * depth) * math.log(2 * depth) / 3)
        self.reader = _stack(cfg, encoder_gain)
        self.queries = nn.Parameter(torch.randn(cfg.num_queries, cfg.width))
        self.writer = _stack(cfg, math.sqrt(math.log(3 * depth)), cross_attention=True)

    def forward(self, hidden_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        memory_BTd = self.memory(hidden_BTD, token_mask_BT)
        queries_BSd = self.queries.expand(len(hidden_BTD), -1, -1)
        return self.writer(queries_BSd, memory_BKD=memory_BTd, memory_mask_BK=token_mask_BT)

    def memory(self, hidden_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Return the memory that the queries attend to, (B, T, d)."""
        x_BTd = self.project(hidden_BTD) + _position_rows(self.positions, hidden_BTD.shape[1])
        return self.reader(x_BTd * token_mask_BT[..., None], mask_BT=token_mask_BT)


class QueryDecoder(nn.Module):
    """The ablation without AlignerNet's encoder: queries attend to the MLLM's projected states.

    Shapes:
        hidden_BTD, token_mask_BT -> (B, S, d)
    """

    def __init__(self, cfg: AlignerConfig, mllm_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(mllm_width, cfg.width)
        self.positions = nn.Parameter(torch.randn(cfg.max_positions, cfg.width))
        self.queries = nn.Parameter(torch.randn(cfg.num_queries, cfg.width))
        self.writer = _stack(cfg, math.sqrt(math.log(3 * cfg.num_layers)), cross_attention=True)

    def forward(self, hidden_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        memory_BTd = self.project(hidden_BTD) + _position_rows(self.positions, hidden_BTD.shape[1])
        queries_BSd = self.queries.expand(len(hidden_BTD), -1, -1)
        return self.writer(queries_BSd, memory_BKD=memory_BTd, memory_mask_BK=token_mask_BT)


class LinearProjection(nn.Module):
    """The ablation without AlignerNet: one matrix for every state, then zero padding to S.

    Shapes:
        hidden_BTD, token_mask_BT -> (B, S, d); T may be S at most

    Raises:
        UsageError: a prompt has more than S tokens.
    """

    def __init__(self, cfg: AlignerConfig, mllm_width: int) -> None:
        super().__init__()
        self.length = cfg.num_queries
        self.project = nn.Linear(mllm_width, cfg.width)

    def forward(self, hidden_BTD: Tensor, token_mask_BT: Tensor) -> Tensor:
        num_tokens = hidden_BTD.shape[1]
        if num_tokens > self.length:
            raise UsageError(
                f"the prompt has {num_tokens} tokens; a model without AlignerNet passes at most {self.length} to the "
                "image decoder, one per position of its conditioning"
            )
        projected_BTd = self.project(hidden_BTD) * token_mask_BT[..., None]
        return F.pad(projected_BTd, (0, 0, 0, self.length - num_tokens))


ENCODERS: dict[str, type[nn.Module]] = {"full": AlignerEncoder, "decoder": QueryDecoder, "linear": LinearProjection}


class AlignerDecoder(nn.Module):
    """Conditioning -> hidden states of the requested length.

    Shapes:
        conditioning_BSd -> (B, num_tokens, D)
    """

    def __init__(self, cfg: AlignerConfig, mllm_width: int) -> None:
        super().__init__()
        depth = cfg.num_layers
        self.queries = nn.Parameter(torch.randn(cfg.max_positions, cfg.width))
        self.reader = _stack(cfg, math.sqrt(math.log(3 * depth)), cross_attention=True)
        self.positions = nn.Parameter(torch.randn(cfg.max_positions, cfg.width))
        self.writer = _stack(cfg, math.sqrt(math.log(2 * depth)))
        self.project = nn.Linear(cfg.width, mllm_width)

    def forward(self, conditioning_BSd: Tensor, num_tokens: int) -> Tensor:
        x_BTd = self.read(conditioning_BSd, num_tokens)
        return self.project(self.writer(x_BTd + _position_rows(self.positions, num_tokens)))

    def read(self, conditioning_BSd: Tensor, num_tokens: int) -> Tensor:
        """Cross-attend one query per token to the conditioning, (B, num_tokens, d)."""
        # Queries count from row 0, unlike positions.
        queries_BTd = self.queries[:num_tokens].expand(len(conditioning_BSd), -1, -1)
        return self.reader(queries_BTd, memory_BKD=conditioning_BSd)


def _stack(cfg: AlignerConfig, init_gain: float, *, cross_attention: bool = False) -> TransformerStack:
    return TransformerStack(
        cfg.width, cfg.num_heads, cfg.ffn_width, cfg.num_layers, init_gain=init_gain, cross_attention=cross_attention
    )


def _position_rows(positions_Rd: Tensor, num_tokens: int) -> Tensor:
    last = FIRST_POSITION + num_tokens
    assert last <= len(positions_Rd), (
        f"{num_tokens} tokens need {last} position rows; the table has {len(positions_Rd)}"
    )
    return positions_Rd[FIRST_POSITION:last]

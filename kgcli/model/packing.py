"""Packing: several sequences in one row of a causal stack, each attending to itself alone.

Shape letters: B sequences, T positions of the longest, R rows, L positions of a row, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """The place of each position of padded sequences in rows that hold several of them."""

    token_mask_BT: Tensor  # True = a real token, pads to the right only
    source_RL: Tensor  # flat position b * T + t that a position of a row shows; any where there is none
    segment_RL: Tensor  # sequence that a position belongs to; B and more, one each, where there is none
    target_BT: Tensor  # flat position r * L + l of a real token; any for a pad

    @classmethod
    def plan(cls, token_mask_BT: Tensor, row_tokens: int) -> Packing:
        """Spread sequences evenly over as few rows of about `row_tokens` as hold them, the longest first."""
        lengths = token_mask_BT.sum(dim=1).tolist()
        num_rows = max(1, -(-sum(lengths) // row_tokens))
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        filled = [0] * num_rows
        for sequence in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
            row = min(range(num_rows), key=filled.__getitem__)
            rows[row].append(sequence)
            filled[row] += lengths[sequence]
        shape, num_tokens = (num_rows, max(filled)), token_mask_BT.shape[1]
        source = torch.zeros(shape, dtype=torch.long)
        segment = torch.arange(len(lengths), len(lengths) + source.numel()).reshape(shape)
        target = torch.zeros(token_mask_BT.shape, dtype=torch.long)
        for row, sequences in enumerate(rows):
            at = 0
            for sequence in sequences:
                length = lengths[sequence]
                source[row, at : at + length] = torch.arange(length) + sequence * num_tokens
                segment[row, at : at + length] = sequence
                target[sequence, :length] = torch.arange(length) + row * shape[1] + at
                at += length
        device = token_mask_BT.device
        return cls(token_mask_BT, source.to(device), segment.to(device), target.to(device))

    @property
    def mask_RLL(self) -> Tensor:
        """The attention mask: a position sees itself and those before it in its sequence."""
        same_RLL = self.segment_RL[:, :, None] == self.segment_RL[:, None, :]
        return same_RLL.tril()

    def pack(self, x_BTD: Tensor) -> Tensor:
        """Return sequences as rows, (R, L, D)."""
        return x_BTD.flatten(0, 1)[self.source_RL]

    def unpack(self, x_RLD: Tensor) -> Tensor:
        """Return rows as sequences, (B, T, D), zero at pads."""
        return x_RLD.flatten(0, 1)[self.target_BT] * self.token_mask_BT[..., None]

"""Laws of packing: each sequence sees itself alone, wherever it lies, and hardly a position is padding."""

import pytest
import torch

from kgcli.config import MLLMConfig
from kgcli.model.mllm import MLLM
from kgcli.model.packing import Packing

LENGTHS = [3, 17, 1, 9, 9, 12, 5, 2, 30, 4]


def mask_of(lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("row_tokens", [8, 31, 46, 1000])
def test_packing_is_undone_by_unpacking(row_tokens):
    mask = mask_of(LENGTHS)
    packing = Packing.plan(mask, row_tokens)
    x = torch.randn(*mask.shape, 4)
    assert torch.equal(packing.unpack(packing.pack(x)), x * mask[..., None])
    assert len(packing.source_RL) == -(-sum(LENGTHS) // row_tokens)


@pytest.mark.parametrize("row_tokens", [31, 46, 1000])
def test_hidden_states_and_gradients_are_those_of_a_row_each(row_tokens):
    torch.manual_seed(0)
    cfg = MLLMConfig(vocab_size=50, width=16, num_layers=3, num_heads=2, ffn_width=32, max_positions=64)
    mllm, mask = MLLM(cfg, pad_id=1).eval(), mask_of(LENGTHS)
    tokens = torch.randint(4, 50, mask.shape).masked_fill(~mask, 1)
    found = []
    for rows in (None, row_tokens):
        mllm.row_tokens = rows
        mllm.zero_grad()
        hidden = mllm(mllm.embed(tokens), mask)[mask]
        (hidden * torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)).sum().backward()
        found.append([hidden, *(parameter.grad for parameter in mllm.parameters())])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


def test_rows_are_filled_evenly():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (64,), generator=generator).tolist()
    packing = Packing.plan(mask_of(lengths), 512)
    assert packing.source_RL.numel() / sum(lengths) < 1.005

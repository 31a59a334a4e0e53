"""Laws of the language model."""

import pytest
import torch
from tiny_model import CONFIG

from kgcli.model.mllm import MLLM, sinusoids

PAD = CONFIG.special_ids.pad


@pytest.fixture
def mllm():
    torch.manual_seed(0)
    return MLLM(CONFIG.mllm, PAD).eval()


def read(mllm, tokens):
    return mllm(mllm.embed(tokens), tokens != PAD)


def test_a_token_is_not_seen_before_its_turn(mllm):
    tokens = torch.randint(4, 40, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = 41
    before, after = read(mllm, tokens), read(mllm, changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amax(dim=-1).min() > 1e-4


def test_pads_on_the_right_change_no_real_token(mllm):
    tokens = torch.randint(4, 40, (2, 8))
    padded = torch.cat([tokens, torch.full((2, 5), PAD)], dim=1)
    torch.testing.assert_close(read(mllm, padded)[:, :8], read(mllm, tokens))


def test_positions_begin_at_two_and_pads_have_none():
    mask = torch.tensor([[True, True, False]])
    rows = sinusoids(mask, 6)[0]
    frequencies = torch.tensor([1.0, 0.01, 0.0001])
    expected = torch.stack([torch.cat([(p * frequencies).sin(), (p * frequencies).cos()]) for p in (2, 3)])
    torch.testing.assert_close(rows[:2], expected)
    assert rows[2].eq(0).all()


def test_input_and_output_embedding_are_one(mllm):
    hidden = torch.randn(1, 2, CONFIG.mllm.width)
    torch.testing.assert_close(mllm.logits(hidden), hidden @ mllm.embedding.weight.T)
    assert mllm.embedding.weight[PAD].eq(0).all()


def test_dropout_acts_in_training_alone(mllm):
    tokens = torch.randint(4, 40, (1, 8))
    assert torch.equal(read(mllm, tokens), read(mllm, tokens))
    mllm.train()
    assert not torch.equal(read(mllm, tokens), read(mllm, tokens))

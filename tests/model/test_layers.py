"""Laws of the parts that every tower is built from."""

import math

import pytest
import torch

from kgcli.model.layers import Attention, TransformerStack


@pytest.mark.parametrize("mode", ["all", "causal", "masked"])
def test_attention_is_softmax_of_scaled_products(mode):
    torch.manual_seed(0)
    attention, x = Attention(8, 2), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]]) if mode == "masked" else None
    allowed = torch.ones(2, 5, 5, dtype=torch.bool)
    if mode == "causal":
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, :]
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        q, k, v = (proj(x)[..., rows] for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
        scores = (q @ k.transpose(1, 2) / math.sqrt(4)).masked_fill(~allowed, -math.inf)
        heads.append(scores.softmax(dim=-1) @ v)
    expected = attention.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, x, key_mask_BK=mask, causal=mode == "causal"), expected)


def test_initial_gain_leaves_cross_attention_alone():
    torch.manual_seed(0)
    plain, gained = (TransformerStack(16, 2, 32, 2, init_gain=1.0, cross_attention=True) for _ in range(2))
    gained.load_state_dict(plain.state_dict())
    gained._scale_initial_weights(3.0)
    ratios = {
        name: (parameter.abs().sum() / plain.get_parameter(name).abs().sum()).item()
        for name, parameter in gained.named_parameters()
        if "norm" not in name
    }
    assert ratios
    for name, ratio in ratios.items():
        is_gained = "cross_attention" not in name and ("ffn" in name or "v_proj" in name or "out_proj" in name)
        assert ratio == pytest.approx(3.0 if is_gained else 1.0), name

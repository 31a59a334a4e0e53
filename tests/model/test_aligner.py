"""Laws of AlignerNet."""

import pytest
import torch
from tiny_model import CONFIG

from kgcli.errors import UsageError
from kgcli.model.aligner import AlignerNet

D = CONFIG.mllm.width


@pytest.fixture
def aligner():
    torch.manual_seed(0)
    return AlignerNet(CONFIG.aligner, D).eval()


def ablated(kind):
    torch.manual_seed(0)
    return AlignerNet(CONFIG.aligner.model_copy(update={"kind": kind}), D).eval()


def test_what_stands_at_pads_does_not_matter(aligner):
    hidden = torch.randn(2, 9, D)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    other = torch.where(mask[..., None], hidden, torch.randn(2, 9, D))
    conditioning = aligner.encode(hidden, mask)
    assert conditioning.shape == (2, CONFIG.aligner.num_queries, CONFIG.aligner.width)
    torch.testing.assert_close(aligner.encode(other, mask), conditioning)
    torch.testing.assert_close(aligner.encode(hidden[1:, :5], mask[1:, :5]), conditioning[1:])


def test_the_inverse_map_has_the_requested_length(aligner):
    conditioning = torch.randn(2, CONFIG.aligner.num_queries, CONFIG.aligner.width)
    assert aligner.decode(conditioning, 7).shape == (2, 7, D)


def test_the_reconstruction_trains_both_halves(aligner):
    hidden = torch.randn(2, 9, D)
    conditioning = aligner.encode(hidden, torch.ones(2, 9, dtype=torch.bool))
    (aligner.decode(conditioning, 9) - hidden).square().mean().backward()
    # No softmax feels an equal shift of its scores, so the gradient of key biases is naught but rounding.
    unreached = [name for name, p in aligner.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in unreached if "k_proj.bias" not in name] == []


def test_more_tokens_than_positions_are_refused(aligner):
    hidden = torch.randn(1, CONFIG.aligner.max_positions, D)
    with pytest.raises(AssertionError, match="position rows"):
        aligner.encode(hidden, torch.ones(1, hidden.shape[1], dtype=torch.bool))


@pytest.mark.parametrize("kind", ["decoder", "linear"])
def test_ablations_use_only_real_tokens_and_have_no_decoder(kind):
    aligner = ablated(kind)
    hidden = torch.randn(2, 5, D)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    conditioning = aligner.encode(hidden, mask)
    assert conditioning.shape == (2, CONFIG.aligner.num_queries, CONFIG.aligner.width)
    torch.testing.assert_close(aligner.encode(hidden[1:, :3], mask[1:, :3]), conditioning[1:])
    assert aligner.decoder is None
    assert not any("reader" in name for name, _ in aligner.named_parameters())


def test_without_aligner_every_state_has_its_own_position():
    aligner = ablated("linear")
    hidden = torch.randn(1, 3, D)
    conditioning = aligner.encode(hidden, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(conditioning[:, :3], aligner.encoder.project(hidden))
    assert not conditioning[:, 3:].any()
    long = torch.randn(1, CONFIG.aligner.num_queries + 1, D)
    with pytest.raises(UsageError, match="one per position"):
        aligner.encode(long, torch.ones(1, long.shape[1], dtype=torch.bool))

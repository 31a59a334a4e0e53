"""Laws of the resampler."""

import torch

from kgcli.config import ResamplerConfig
from kgcli.model.resampler import Resampler


def test_the_order_of_vision_tokens_does_not_matter():
    torch.manual_seed(0)
    resampler, patches = Resampler(ResamplerConfig(num_queries=3, num_heads=2), 10, 8).eval(), torch.randn(2, 7, 10)
    features = resampler(patches)
    assert features.shape == (2, 3, 8)
    torch.testing.assert_close(resampler(patches[:, torch.randperm(7)]), features)


def test_a_query_sees_itself_even_where_the_image_says_nothing():
    torch.manual_seed(0)
    resampler = Resampler(ResamplerConfig(num_queries=3, num_heads=2), 10, 8).eval()
    with torch.no_grad():
        resampler.project.weight.zero_()
        resampler.project.bias.zero_()
        before = resampler(torch.zeros(1, 7, 10))
        resampler.queries[0] += 1
        after = resampler(torch.zeros(1, 7, 10))
    assert not torch.allclose(before[:, 1:], after[:, 1:])  # the other queries saw the change too

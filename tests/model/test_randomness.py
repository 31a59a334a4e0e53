"""Laws of a step's randomness."""

import torch

from kgcli.model.randomness import StepRandom


def draws(random):
    return [random.uniform(), random.normal(2, 3), random.integers(1000), random.uniform(4)]


def test_a_sample_draws_the_same_in_any_batch():
    whole = draws(StepRandom(0, 7, range(6)))
    for part in ([0, 1, 2], [3, 4, 5], [5], [4, 0]):
        for found, expected in zip(draws(StepRandom(0, 7, part)), whole, strict=True):
            assert torch.equal(found, expected[part])


def test_seed_step_and_number_each_change_what_is_drawn():
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1)]
    found = {tuple(StepRandom(seed, step, [number]).normal(4).flatten().tolist()) for seed, step, number in keys}
    assert len(found) == len(keys)


def test_the_shared_stream_is_of_the_step_alone():
    streams = [StepRandom(3, 2, numbers).shared for numbers in ([0], [5, 6])]
    assert torch.equal(torch.randn(3, generator=streams[0]), torch.randn(3, generator=streams[1]))
    assert not torch.equal(torch.randn(3, generator=StepRandom(3, 3, [0]).shared), torch.randn(3, generator=streams[0]))


def test_views_of_a_sample_differ_and_depend_on_it_alone():
    views = StepRandom(0, 0, [4, 9]).repeated(2).normal(3)
    assert views.shape == (4, 3)
    assert not torch.equal(views[0], views[2])
    assert torch.equal(views[1::2], StepRandom(0, 0, [9]).repeated(2).normal(3))


def test_numbers_are_spread_as_they_should_be():
    values = StepRandom(0, 0, range(2000)).uniform()
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]) < 0.1


def test_spread_numbers_cover_the_interval_evenly_in_any_split():
    first, count = 1 << 40, 64  # a large sample number loses no precision
    whole = StepRandom(0, 7, range(first, first + count)).spread()
    assert 0 <= whole.min() <= whole.max() < 1
    assert whole.sort().values.diff().max() < 2.7 / count  # independent ones leave gaps of about 5 / count
    parts = [StepRandom(0, 7, range(first + rank, first + count, 2)).spread() for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole)
    assert not torch.equal(StepRandom(0, 8, range(first, first + count)).spread(), whole)

"""Laws of a step's randomness."""

import pytest
import torch

from kgcli.model.randomness import HashedRandom, StepRandom, step_random


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


@pytest.mark.parametrize("draw", [lambda numbers: StepRandom(0, 0, numbers), lambda numbers: hashed(numbers)])
def test_views_of_a_sample_differ_and_depend_on_it_alone(draw):
    views = draw([4, 9]).repeated(2).normal(3)
    assert views.shape == (4, 3)
    assert not torch.equal(views[0], views[2])
    assert torch.equal(views[1::2], draw([9]).repeated(2).normal(3))


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


def hashed(numbers, seed=0, step=7):
    return HashedRandom(seed, step, numbers, torch.device("cpu"))


def test_hashed_numbers_of_a_sample_do_not_depend_on_the_others_either():
    whole = draws(hashed(range(6)))
    for part in ([2], [0, 5], [4, 3, 1]):
        for found, expected in zip(draws(hashed(part)), whole, strict=True):
            assert torch.equal(found, expected[part])


def test_hashed_numbers_are_distributed_as_they_should_be():
    random = hashed(range(512))
    normal, more, uniform, integers = random.normal(8, 9), random.normal(72), random.uniform(72), random.integers(10)
    assert normal.shape == (512, 8, 9) and normal.isfinite().all()
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.01 and abs((normal**4).mean() - 3) < 0.15
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert (torch.histc(uniform, 10) / uniform.numel() - 0.1).abs().max() < 0.01
    assert integers.min() == 0 and integers.max() == 9
    independent = torch.corrcoef(torch.stack([normal.flatten(), more.flatten(), uniform.flatten()]))
    assert (independent - torch.eye(3)).abs().max() < 0.03
    neighbours = torch.corrcoef(normal.flatten(1)[:8])
    assert (neighbours - torch.eye(8)).abs().max() < 0.45
    assert not torch.equal(hashed([1]).normal(4), hashed([1], step=8).normal(4))
    assert not torch.equal(hashed([1]).normal(4), hashed([1], seed=1).normal(4))


def test_a_processor_keeps_its_own_generators_and_seeds_dropout_by_the_first_sample():
    random = step_random(0, 7, [4, 5], torch.device("cpu"))
    assert type(random) is StepRandom
    seeds = {random.dropout_seed, StepRandom(0, 8, [4]).dropout_seed, StepRandom(0, 7, [5]).dropout_seed}
    assert len(seeds) == 3 and random.dropout_seed == StepRandom(0, 7, [4]).dropout_seed
    assert hashed([4]).dropout_seed != hashed([5]).dropout_seed

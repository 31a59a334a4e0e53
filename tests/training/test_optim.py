"""Laws of the optimizer's groups and of the learning rate's course."""

import pytest
from torch import nn

from kgcli.recipe import OptimConfig
from kgcli.training.optim import lr_at, make_optimizer

SCHEDULES = ("linear", "cosine", "constant")


def test_vectors_are_not_decayed_and_frozen_parameters_are_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    matrices, vectors = make_optimizer(module.named_parameters(), OptimConfig(weight_decay=0.3)).param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(4,)] * 3
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_warms_up_in_a_straight_line_and_never_exceeds_its_peak(schedule):
    cfg = OptimConfig(lr=0.5, warmup_steps=10, schedule=schedule, decay_fraction=0.5)
    rates = [lr_at(step, 100, cfg) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.5)
    assert min(rates) > 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_stays_at_its_peak_until_it_falls_to_nothing(schedule):
    cfg = OptimConfig(lr=0.5, warmup_steps=10, schedule=schedule, decay_fraction=0.4)
    rates = [lr_at(step, 100, cfg) for step in range(101)]
    assert rates[10:61] == pytest.approx([0.5] * 51)
    assert all(later < earlier for earlier, later in zip(rates[60:], rates[61:], strict=False))
    assert rates[80] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0.0)


def test_a_constant_rate_stays():
    cfg = OptimConfig(lr=0.5, warmup_steps=0, schedule="constant")
    assert {lr_at(step, 100, cfg) for step in range(100)} == {0.5}

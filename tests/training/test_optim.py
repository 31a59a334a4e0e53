"""Laws of the optimizer's groups and of the learning rate's course."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kgcli.recipe import OptimConfig
from kgcli.training.optim import (
    NEWTON_SCHULZ,
    NUM_NEWTON_SCHULZ,
    Muon,
    lr_at,
    make_optimizer,
    orthogonalise,
)

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


def plain_newton_schulz(matrix):
    """The iteration as published, on the whole matrix."""
    a, b, c = NEWTON_SCHULZ
    matrix = matrix / matrix.norm()
    for _ in range(NUM_NEWTON_SCHULZ):
        gram = matrix @ matrix.mT
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)])
def test_orthogonalising_by_the_gram_matrix_equals_the_published_iteration(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    wanted = torch.stack([plain_newton_schulz(m if m.shape[0] <= m.shape[1] else m.mT) for m in matrices])
    wanted = wanted if shape[0] <= shape[1] else wanted.mT
    found = torch.stack(orthogonalise(list(matrices)))
    assert torch.allclose(found, wanted, atol=2e-4)
    values = torch.linalg.svdvals(found)
    assert 0.3 < values.min() <= values.max() < 1.3


def test_a_matrix_is_orthogonalised_alike_whatever_is_beside_it():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in ((6, 40), (9, 5), (40, 6), (6, 6), (6, 40))]
    for matrix, found in zip(matrices, orthogonalise(matrices), strict=True):
        assert found.shape == matrix.shape
        assert torch.allclose(found, orthogonalise([matrix])[0], atol=1e-6)


def test_steps_on_lists_are_those_of_one_weight_at_a_time():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 12, 3), nn.Linear(12, 40), nn.LayerNorm(40))
    module.to(memory_format=torch.channels_last)
    cfg = OptimConfig(lr=1e-2, muon_lr=2e-2, weight_decay=0.1)
    together = make_optimizer(module.named_parameters(), cfg)
    single = copy.deepcopy(module)
    alone = [make_optimizer([(name, parameter)], cfg) for name, parameter in single.named_parameters()]
    for step in range(6):
        for number, (one, other) in enumerate(zip(module.parameters(), single.parameters(), strict=True)):
            gradient = torch.randn_like(one) if step or number else None  # the first joins a step later
            one.grad, other.grad = gradient, gradient
        together.step()
        for optimizer in alone:
            optimizer.step()
    for one, other in zip(module.parameters(), single.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_step_of_muon_is_few_calls_however_many_weights_there_are():
    """A GPU waits for each: of a small U-Net the optimizer once made five times as many as its forward pass."""

    def num_calls(num_layers):
        layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(num_layers))
        optimizer = make_optimizer(layers.named_parameters(), OptimConfig(muon_lr=1e-3))
        for _ in range(2):
            for parameter in layers.parameters():
                parameter.grad = torch.ones_like(parameter)
            with CountCalls() as calls:
                optimizer.step()
        return calls.num

    few, many = num_calls(4), num_calls(40)
    assert many - few < 9 * 36  # calls a layer: views, and the steps of AdamW's three vectors


class CountCalls(TorchDispatchMode):
    """Count what is computed, views excepted."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += not func.is_view
        return func(*args, **(kwargs or {}))


def test_muon_takes_matrices_and_convolutions_and_leaves_vectors_small_weights_and_tables_to_adamw():
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(12, 16, 3),
            "first": nn.Conv2d(12, 3, 3),
            "norm": nn.GroupNorm(4, 16),
            "token_embedding": nn.Embedding(30, 16),
        }
    )
    optimizer = make_optimizer(module.named_parameters(), OptimConfig(lr=1e-3, muon_lr=4e-3, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    found = [(g["kind"], g["lr_ratio"], sorted(names[id(p)] for p in g["params"])) for g in optimizer.param_groups]
    assert found[0] == ("muon", 4.0, ["conv.weight"])
    assert found[1] == ("adamw", 1.0, ["first.weight", "token_embedding.weight"])
    assert found[2][2] == ["conv.bias", "first.bias", "norm.bias", "norm.weight"]


def test_the_adamw_half_of_muon_is_torchs_own():
    first, second = (nn.Linear(5, 4) for _ in range(2))
    second.load_state_dict(first.state_dict())
    cfg = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1, "eps": 1e-8}
    ours = Muon([{"params": list(first.parameters()), **cfg}])
    theirs = torch.optim.AdamW(second.parameters(), **cfg)
    for step in range(4):
        inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        for module, optimizer in ((first, ours), (second, theirs)):
            module(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_muon_goes_on_from_its_saved_state_as_if_it_had_never_stopped():
    def step(module, optimizer, seed):
        module(torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    cfg = OptimConfig(lr=1e-2, muon_lr=2e-2)
    module = nn.Linear(20, 16)
    optimizer = make_optimizer(module.named_parameters(), cfg)
    step(module, optimizer, 0)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    step(module, optimizer, 1)
    again = nn.Linear(20, 16)
    again.load_state_dict(weights)
    other = make_optimizer(again.named_parameters(), cfg)
    other.load_state_dict(state)
    step(again, other, 1)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))

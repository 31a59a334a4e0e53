"""The law of the same step: losses, gradient norms and weights depend neither on the number of processes nor on
micro-batches."""

import pytest
import torch
from processes import on_processes
from smoke_runs import smoke

from kgcli.errors import ConfigError
from kgcli.recipe import load_recipe
from kgcli.training import loop as training
from kgcli.training.dtensors import whole

STAGES = ("pretrain", "align", "instruct", "clip", "unet")
EVALUATORS = ("judge", "eval_clip", "eval_dino")
WAYS = {  # processes, settings of the recipe
    "2 processes": (2, []),
    "2 micro-batches": (1, ["accumulate=2"]),
    "2 processes of 2 micro-batches": (2, ["accumulate=2"]),
    "2 processes, sharded": (2, ["parallel=fsdp2"]),
    "2 processes, sharded, of 2 micro-batches": (2, ["parallel=fsdp2", "accumulate=2"]),
}


def recipe_of(root, stage, *settings):
    """The smoke recipe of a stage after another one of the chain, or of a stage that starts from nothing."""
    if stage in EVALUATORS:
        small = ["data.batch_size=4", f"output_dir={root}/{stage}"]
        return load_recipe(f"smoke/{stage}", [*small, *settings])
    return smoke(root, stage, *settings)


def values_of(recipe):
    """The values of every step of a recipe, as floats, and the norms of the weights reached."""
    run = training.Run(recipe)
    pool = run.pool()
    training._start(run)
    rows = [
        {name: float(value) for name, value in values.items()}
        for values in run.trainer.steps(run.batches(pool, 0), run.losses)
    ]
    # The bias of keys changes no attention: its gradient is rounding, which Adam scales up.
    names = [name for name in run.trained if "k_proj.bias" not in name]
    norms = {name: float(whole(run.trained[name]).detach().double().norm()) for name in names}
    return [rows, norms]


def all_values(root, stages, settings):
    return {stage: values_of(recipe_of(root, stage, *settings)) for stage in stages}


def difference(one, other):
    """The largest relative difference of any loss or gradient norm, of rows of `values_of`."""
    assert len(one) == len(other)
    pairs = [(row[name], again[name]) for row, again in zip(one, other, strict=True) for name in row]
    assert all(row.keys() == again.keys() for row, again in zip(one, other, strict=True))
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


@pytest.fixture(scope="module")
def alone(chain):
    """The values of three steps on one process."""
    return on_processes(1, all_values, chain, (*STAGES, *EVALUATORS), ["steps=3"])[0]


@pytest.mark.parametrize("way", WAYS)
def test_the_step_does_not_depend_on_processes_and_micro_batches(chain, alone, way):
    num, settings = WAYS[way]
    found = on_processes(num, all_values, chain, tuple(alone), ["steps=3", *settings])
    assert all(other == found[0] for other in found)  # every process logs the whole batch's values
    for stage, (rows, norms) in alone.items():
        assert difference(rows, found[0][stage][0]) < 1e-5, stage
        for name, norm in norms.items():
            assert found[0][stage][1][name] == pytest.approx(norm, rel=1e-4, abs=1e-5), (stage, name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps_are_the_same(chain, way):
    settings = ["steps=20", "data.batch_size=8", "data.pool=32"]
    num, more = WAYS[way]
    (one,) = on_processes(1, all_values, chain, STAGES, settings)
    found = on_processes(num, all_values, chain, STAGES, [*settings, *more])[0]
    worst = {stage: difference(one[stage][0], found[stage][0]) for stage in STAGES}
    print(way, {stage: f"{value:.1e}" for stage, value in worst.items()})
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_steps_without_any_image_are_the_same_too(chain, parallel):
    settings = ["steps=2", "data.kinds={text: 1.0}", f"parallel={parallel}"]
    one, two = (on_processes(num, all_values, chain, ("pretrain",), settings)[0]["pretrain"][0] for num in (1, 2))
    assert difference(one, two) < 1e-5


def test_the_parts_of_a_batch_hold_their_own_samples(chain):
    run = training.Run(smoke(chain, "pretrain", "data.kinds={text: 0.5, interleaved: 0.5}"))
    batch = next(run.batches(None, 0))
    parts = batch.split(4)
    assert [part.numbers[0] for part in parts] == list(batch.numbers)
    assert [len(part.images) for part in parts] == list(batch.num_images)
    assert len(set(batch.num_images)) > 1
    for name, whole_field in batch.fields().items():
        assert torch.equal(torch.cat([part.fields()[name] for part in parts]), whole_field)


def test_a_batch_that_micro_batches_cannot_split_evenly_is_refused(chain):
    with pytest.raises(ConfigError, match="data.batch_size is 4, which 3 micro-batches cannot split evenly"):
        training.Run(smoke(chain, "vae", "accumulate=3"))


def test_a_contrast_in_micro_batches_has_the_gradient_of_the_whole(chain):
    """Also of the temperature, which no sample owns."""
    gradients = []
    for settings in ([], ["accumulate=2"], ["accumulate=4"]):
        run = training.Run(smoke(chain, "clip", *settings))
        for losses in run.losses(next(run.batches(None, 0))):
            sum(losses.values()).backward()
        gradients.append({name: p.grad for name, p in run.trained.items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert gradients[0]["clip.logit_scale"].abs() > 1e-4

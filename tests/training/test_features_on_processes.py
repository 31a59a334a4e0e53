"""Laws of LoRA, activation checkpointing, validation and skipped steps on several processes: all are those of one."""

import pytest
import torch
from processes import on_processes
from smoke_runs import smoke
from test_same_step import difference, values_of

from kgcli.training import loop as training

WAYS = {"2 processes": ["parallel=ddp"], "2 processes, sharded": ["parallel=fsdp2"]}
ALL = "activation_checkpointing=[vision, mllm, aligner, unet]"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", [["train=lora", "lora.rank=4", ALL], ["train=aligner"], [ALL]])
def test_what_trains_of_instruct_takes_the_same_steps(chain, settings, way):
    settings = [*settings, "steps=3", "optim.warmup_steps=0"]
    (one,) = on_processes(1, values_of, smoke(chain, "instruct", *settings))
    found = on_processes(2, values_of, smoke(chain, "instruct", *settings, *WAYS[way]))
    assert found[0] == found[1]
    assert difference(one[0], found[0][0]) < 1e-5


def validate(recipe):
    """The losses of the held-out samples after a step of training."""
    run = training.Run(recipe)
    pool = run.pool()
    validation = training.Validation(run)
    training.start(run)
    for _ in run.trainer.steps([next(run.batches(pool, 0))], run.losses):
        pass
    return validation()


@pytest.mark.parametrize("way", WAYS)
def test_validation_losses_do_not_depend_on_the_processes(chain, way, tmp_path):
    settings = ["validation.every=1", "validation.samples=8", "ema_decay=0.5"]
    (one,) = on_processes(1, validate, smoke(chain, "instruct", *settings, out=tmp_path / "1"))
    found = on_processes(2, validate, smoke(chain, "instruct", *settings, *WAYS[way], out=tmp_path / "2"))
    assert found[0] == found[1]
    assert all(found[0][name] == pytest.approx(value, rel=1e-5) for name, value in one.items())


def train_on(recipe, held_out):
    """Return the losses of steps between which held-out samples are measured, or not."""
    run = training.Run(recipe)
    pool = run.pool()
    validation = training.Validation(run) if held_out else None
    training.start(run)
    losses = []
    for values in run.trainer.steps(run.batches(pool, 0), run.losses):
        losses.append(float(values["loss"]))
        if validation is not None:
            validation()
    return losses


def with_and_without(recipe):
    return train_on(recipe, True), train_on(recipe, False)


def test_validation_of_running_means_leaves_sharded_training_alone(chain, tmp_path):
    settings = ["validation.every=1", "validation.samples=8", "ema_decay=0.5", "steps=3", "optim.warmup_steps=0"]
    found = on_processes(2, with_and_without, smoke(chain, "pretrain", *settings, "parallel=fsdp2", out=tmp_path / "2"))
    assert found[0][0] == found[0][1]


def skip(recipe):
    """Return of each step whether it was skipped, the sum of the weights after it (on the main process, which gathers
    them) and the steps skipped in a row, with a NaN on the last process alone."""
    run = training.Run(recipe)
    training.start(run)
    batches = list(run.batches(None, 0))
    if run.processes.rank == run.processes.num - 1:
        batches[1].targets[0] = torch.nan
    rows = []
    for values in run.trainer.steps(batches, run.losses):
        weights = run.processes.full(run.trained)
        total = sum(weight.double().sum().item() for weight in weights.values())
        rows.append([float(values["skipped"]), total, int(run.trainer.finite.in_a_row)])
    return rows


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_on_one_process_is_skipped_on_all(chain, way):
    found = on_processes(2, skip, smoke(chain, "vae", "steps=3", *WAYS[way]))
    assert [(row[0], row[2]) for row in found[0]] == [(row[0], row[2]) for row in found[1]]
    (first, second, third) = found[0]
    assert [row[0] for row in found[0]] == [0.0, 1.0, 0.0] and [row[2] for row in found[0]] == [0, 1, 0]
    assert first[1] == second[1] != third[1]

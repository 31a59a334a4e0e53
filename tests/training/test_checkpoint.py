"""Laws of checkpoints: whole or not there, rotated, found again, and damage named."""

import json

import pytest
import torch
import yaml

from kgcli.errors import MissingError, UsageError
from kgcli.training import checkpoint


def save(run, step, keep=2, value=None):
    weights = {"weight": torch.full((2, 2), float(step if value is None else value))}
    return checkpoint.save(run, step, weights, {"optimizer": {"step": step}}, "stage: align\n", keep)


def steps_of(run):
    return [int(path.name.removeprefix("step_")) for path in checkpoint.list_steps(run)]


def test_what_is_saved_is_loaded(tmp_path):
    folder = save(tmp_path, 30)
    step, weights, state = checkpoint.load(folder)
    assert step == 30
    assert torch.equal(weights["weight"], torch.full((2, 2), 30.0))
    assert state == {"optimizer": {"step": 30}}
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"stage": "align"}
    assert json.loads((folder / "trainer.json").read_text()) == {"step": 30}


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    assert steps_of(tmp_path) == [30, 40]


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (9_999, 10_000, 10_000_000):
        save(tmp_path, step, keep=3)
    assert steps_of(tmp_path) == [9_999, 10_000, 10_000_000]
    assert checkpoint.find(tmp_path, "auto").name == "step_10000000"


def test_a_run_begun_anew_is_not_mistaken_for_the_one_given_up(tmp_path):
    for step in (100, 200):
        save(tmp_path, step)
    save(tmp_path, 10)
    assert steps_of(tmp_path) == [10]


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 10)
    folder = save(tmp_path, 10, value=7)
    assert torch.equal(checkpoint.load(folder)[1]["weight"], torch.full((2, 2), 7.0))


def test_an_interrupted_write_leaves_no_checkpoint_and_the_older_ones_whole(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def half_a_file(_state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [10]
    assert checkpoint.load(checkpoint.find(tmp_path, "auto"))[0] == 10
    save(tmp_path, 20)  # over what is left of the first try
    assert steps_of(tmp_path) == [10, 20]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "trainer.json"])
@pytest.mark.parametrize("fault", ["absent", "cut", "empty"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, name, fault):
    path = save(tmp_path, 10) / name
    content = path.read_bytes()
    path.unlink() if fault == "absent" else path.write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    with pytest.raises(MissingError, match=r"step_0000010 is damaged .*resume from another one") as caught:
        checkpoint.load(path.parent)
    assert "\n" not in str(caught.value)


def test_auto_takes_the_newest_or_starts_anew(tmp_path):
    assert checkpoint.find(tmp_path, "auto") is None
    save(tmp_path, 10)
    save(tmp_path, 20)
    assert checkpoint.find(tmp_path, "auto").name == "step_0000020"


def test_true_needs_one_and_none_takes_none(tmp_path):
    with pytest.raises(MissingError, match="holds no checkpoint to resume from"):
        checkpoint.find(tmp_path, "true")
    folder = save(tmp_path, 10)
    assert checkpoint.find(tmp_path, "true") == folder
    assert checkpoint.find(tmp_path, "none") is None


def test_a_checkpoint_can_be_named(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    assert checkpoint.find(tmp_path / "elsewhere", str(tmp_path / "checkpoints/step_0000010")).name == "step_0000010"
    with pytest.raises(UsageError, match="write auto, true, none or the folder of a checkpoint"):
        checkpoint.find(tmp_path, str(tmp_path))


def test_a_rotation_that_was_killed_is_finished_and_leaves_no_half(tmp_path, monkeypatch):
    for step in (10, 20):
        save(tmp_path, step, keep=3)

    def killed(_folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda folder, **_: killed(folder) if not _ else None)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 30, keep=1)
    monkeypatch.undo()
    assert 10 not in steps_of(tmp_path) and steps_of(tmp_path)[-1] == 30
    checkpoint.prune(tmp_path, checkpoint.find(tmp_path, "auto"), keep=1)
    assert steps_of(tmp_path) == [30]

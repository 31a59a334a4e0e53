"""What is lost of a training run that was killed, damaged, begun anew or started twice: nothing."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from kgcli.data.signals import stop_signals
from kgcli.errors import BusyError, IncompatibleError, MissingError
from kgcli.files import locked, recipes_folder
from kgcli.recipe import dump_recipe, load_recipe
from kgcli.training import checkpoint
from kgcli.training import loop as training
from kgcli.training.resume import recipe_changes

HOST = "a.host.of-mine"
SETTINGS = ["data.batch_size=4", "data.num_workers=0", "save_every=1", "keep_checkpoints=4", "steps=2"]


def recipe_of(folder, *overrides):
    return load_recipe("smoke/vae", [*SETTINGS, f"output_dir={folder}", *overrides], stage="vae")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("vae") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "gethostname", lambda: HOST)
        training.train(recipe_of(folder))
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    return folder


@pytest.fixture
def run(done, tmp_path):
    """A copy of it."""
    return shutil.copytree(done, tmp_path / "run")


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_note(run, capsys):
    final = files_of(run / "final")
    state = run / "checkpoints/step_0000002/state.pt"
    state.write_bytes(state.read_bytes()[:100])
    training.train(recipe_of(run))
    said = capsys.readouterr().err
    assert "step_0000002 is damaged" in said and "going on from step_0000001" in said and "resuming from step 1" in said
    assert files_of(run / "final") == final


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_in_silence(run):
    for path in run.glob("checkpoints/*/trainer.json"):
        path.write_text("[]")
    with pytest.raises(MissingError, match="step_0000001 is damaged"):
        training.train(recipe_of(run))


def test_beginning_anew_puts_the_earlier_run_aside_first(run, capsys, monkeypatch):
    before = files_of(run / "checkpoints")
    monkeypatch.setattr(training.Run, "save", lambda self: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe_of(run), resume="none")
    monkeypatch.undo()
    capsys.readouterr()
    assert files_of(run / "retired/1/checkpoints") == before and (run / "retired/1/final").is_dir()
    training.train(recipe_of(run))  # it must not go on from what was put aside
    assert "starting anew" in capsys.readouterr().err
    assert files_of(run / "checkpoints").keys() == before.keys() and not (run / "retired/2").exists()


def test_a_changed_recipe_is_said_and_another_model_refused(run, capsys):
    training.train(recipe_of(run, "steps=3", "optim.lr=2e-4", "log_every=7"))
    said = capsys.readouterr().err
    assert "steps was 2, is 3" in said and "optim.lr was" in said and "log_every" not in said
    with pytest.raises(IncompatibleError, match="image_size was 64, is 32"):
        training.train(recipe_of(run, "image_size=32"))


def test_two_processes_do_not_share_a_run_folder(run):
    with locked(run), pytest.raises(BusyError, match="another kg is at work"):
        training.train(recipe_of(run, "steps=3"))


def test_no_file_of_a_run_names_the_machine_or_a_place_on_it(done):
    for name, content in files_of(done).items():
        assert HOST not in name and HOST.encode() not in content, name
    assert str(done).encode() not in b"".join(files_of(done / "final").values())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_closed_terminal_ends_a_command_as_kill_does(name):
    script = (
        "import os, signal; from kgcli.cli.app import unwind_on_kill; unwind_on_kill()\n"
        f"try: os.kill(os.getpid(), signal.{name})\nfinally: print('unwound')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "unwound\n" and done.returncode == 128 + getattr(signal, name)
    ignored = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + script],
        capture_output=True,
        text=True,
    )
    assert ignored.returncode == (0 if name == "SIGHUP" else 143)


def test_a_hang_up_is_one_of_the_signals_that_training_saves_at():
    assert signal.SIGHUP in stop_signals()


def test_a_resumed_run_trains_by_the_recipe_at_hand(run):
    recipe = recipe_of(run, "steps=3", "optim.weight_decay=0.5", "optim.betas=[0.8, 0.9]", "ema_decay=0.5")
    resumed = training.Run(recipe)
    resumed.trainer.restore(run, *checkpoint.load(checkpoint.list_steps(run)[-1]))
    group = resumed.trainer.optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"]), resumed.trainer.ema.decay) == (0.5, (0.8, 0.9), 0.5)


def test_a_running_mean_that_begins_on_resume_starts_from_the_weights_reached(run):
    step, weights, state = checkpoint.load(checkpoint.list_steps(run)[-1])
    state.pop("ema", None)
    resumed = training.Run(recipe_of(run, "ema_decay=0.9"))
    resumed.trainer.restore(run, step, weights, state)
    with resumed.trainer.averaged():
        assert all((parameter == weights[name]).all() for name, parameter in resumed.trainer.trained.items())


@pytest.mark.parametrize("name", ["kosmosg/pretrain", "kosmosg/align", "kosmosg/8gpu/align", "kosmosg/one-gpu/align"])
def test_runs_of_recipes_that_name_no_size_of_images_go_on(name, tmp_path):
    recipe = load_recipe(name)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(dump_recipe(recipe.model_copy(update={"image_size": 64})))  # the default of all versions
    assert recipe_changes(saved, recipe) == []


@pytest.mark.parametrize("folder", ["nano", "smoke", "ablations", "example-data"])
def test_recipes_of_the_nano_world_name_the_size_of_their_images(folder):
    for path in (recipes_folder() / folder).glob("*.yaml"):
        assert "image_size" in load_recipe(str(path)).model_fields_set, path

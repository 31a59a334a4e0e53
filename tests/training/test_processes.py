"""Laws of several processes: checkpoints that any number of them resumes, signals and kills, sharded state."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import time

import pytest
import torch
from processes import on_processes, start
from safetensors.torch import load_file
from smoke_runs import rows_of, smoke
from test_same_step import difference

from kgcli.cli.app import run as cli
from kgcli.data.loader import Batches
from kgcli.data.sample import Fault
from kgcli.errors import KgError, MissingError
from kgcli.recipe import OptimConfig
from kgcli.training import checkpoint, sharded
from kgcli.training import loop as training
from kgcli.training import run as runs
from kgcli.training.trainer import Trainer

PARALLEL = ("ddp", "fsdp2")


def train(recipe):
    """Train a recipe to its end."""
    return training.train(recipe)


def resumed_values(recipe):
    """Hashes of the weights that a resumed run starts from, and the values of its steps."""
    run = training.Run(recipe)
    training._resume(run, "true")
    hashes = hashes_of(run.processes.full(run.trained))
    pool = run.pool()
    training.start(run)
    rows = [
        {name: float(value) for name, value in values.items()}
        for values in run.trainer.steps(run.batches(pool, run.trainer.step), run.losses)
    ]
    return [hashes, rows]


def hashes_of(weights):
    return {name: hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest() for name, w in weights.items()}


def weights_of(folder):
    """The trained weights of a run's newest checkpoint."""
    return load_file(checkpoint.find(folder, "auto") / "model.safetensors")


@pytest.mark.parametrize("stage", ["pretrain", "unet", pytest.param("clip", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("before", "after"), [((2, "fsdp2"), (1, "ddp")), ((1, "ddp"), (2, "fsdp2"))])
def test_a_checkpoint_is_resumed_by_another_number_of_processes(chain, stage, before, after, tmp_path):
    out = tmp_path / "run"
    settings = ["steps=2", "optim.schedule=constant", "save_every=2", "sample_every=100", "ema_decay=0.99"]
    on_processes(before[0], train, smoke(chain, stage, *settings, f"parallel={before[1]}", out=out))
    on = [*settings, "steps=7", "save_every=100"]
    same, other = (
        on_processes(num, resumed_values, smoke(chain, stage, *on, f"parallel={parallel}", out=out))[0]
        for num, parallel in (before, after)
    )
    assert other[0] == same[0]
    assert other[0] == hashes_of(weights_of(out))
    assert len(other[1]) == 5
    assert difference(same[1], other[1]) < 1e-5


@pytest.mark.parametrize("parallel", PARALLEL)
def test_processes_export_what_one_exports(chain, parallel, tmp_path):
    for num in (1, 2):
        settings = ["steps=2", f"parallel={parallel}", "ema_decay=0.5"]
        on_processes(num, train, smoke(chain, "instruct", *settings, out=tmp_path / str(num)))
    one, two = (load_file(tmp_path / num / "final/model.safetensors") for num in ("1", "2"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)
    assert len(rows_of(tmp_path / "2")) == 2
    assert all((tmp_path / num / "samples/step_0000002.png").exists() for num in ("1", "2"))


class StoppingOnOne(Batches):
    """The third batch of rank 1 comes with a SIGTERM."""

    def __getitem__(self, step):
        if step == 2 and self.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(step)


def train_with_a_signal_to_one(recipe):
    runs.Batches = StoppingOnOne
    training.train(recipe)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_signal_to_one_process_saves_and_ends_all(chain, parallel, tmp_path):
    recipe = smoke(chain, "vae", "save_every=100", f"parallel={parallel}", out=tmp_path / "run")
    children = start(2, tmp_path, train_with_a_signal_to_one, recipe)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [130, 130], [path.read_text() for path in tmp_path.glob("*.error")]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_0000003"]
    assert checkpoint.load(checkpoint.find(tmp_path / "run", "true"))[0] == 3


class UnreadableOnOne(Batches):
    """Rank 1 cannot read its part of the second batch."""

    def __getitem__(self, step):
        if step == 1 and self.rank == 1:
            raise MissingError("row 7 names a file that is not there")
        return super().__getitem__(step)


def error_of(recipe):
    """The message that a run ends with."""
    runs.Batches = UnreadableOnOne
    try:
        training.train(recipe)
    except KgError as error:
        return str(error)


def test_a_sample_that_one_process_cannot_read_ends_all(chain, tmp_path):
    errors = on_processes(2, error_of, smoke(chain, "vae", out=tmp_path))
    assert errors == [
        "another process cannot read its samples; its message says why",
        "row 7 names a file that is not there",
    ]


class FaultyRows(Batches):
    """Each process skips a row of its own in every batch, and one that all of them skip."""

    def __getitem__(self, step):
        own = Fault("a.tar", f"{self.rank}-{step}", "damaged")
        return dataclasses.replace(super().__getitem__(step), faults=(own, Fault("b.tar", "7", "damaged")))


def error_of_faulty_rows(recipe):
    runs.Batches = FaultyRows
    try:
        training.train(recipe)
    except MissingError as error:
        return str(error)


def test_skipped_rows_count_once_over_all_processes(chain, tmp_path):
    recipe = smoke(chain, "vae", "data.max_faults=6", out=tmp_path / "run")
    for error in on_processes(2, error_of_faulty_rows, recipe):
        assert error.startswith("7 rows of the data cannot be read, data.max_faults allows 6: a.tar: 6, b.tar: 1;")
    rows = [json.loads(line)["row"] for line in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    assert sorted(rows) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2", "7"]
    assert not list((tmp_path / "run").glob("faults.*.jsonl"))


def printed(*args):
    """What the command prints to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli(list(args)) == 0
    return out.getvalue()


def test_the_result_is_printed_once(tmp_path):
    out = str(tmp_path / "run")
    settings = ["steps=1", "data.batch_size=2", "data.num_workers=0", f"output_dir={out}"]
    assert on_processes(2, printed, "base", "vae", "smoke/vae", *settings) == [f"{out}/final\n", ""]


def test_sharded_scalars_in_fp16_are_refused(chain, tmp_path):
    settings = ["precision=fp16", "parallel=fsdp2"]
    for error in on_processes(2, error_of, smoke(chain, "clip", *settings, out=tmp_path)):
        assert "stage clip trains a scalar (clip.logit_scale), which precision fp16 cannot combine" in error


def test_a_batch_that_processes_cannot_split_evenly_is_refused(chain, tmp_path):
    for error in on_processes(2, error_of, smoke(chain, "vae", "data.batch_size=6", "accumulate=2", out=tmp_path)):
        assert error.startswith("data.batch_size is 6, which 2 processes x 2 micro-batches cannot split evenly")


def test_background_saving_holds_the_weights_of_its_step(chain, tmp_path):
    settings = ["steps=4", "save_every=1", "keep_checkpoints=4", "ema_decay=0.9", "log_every=100"]
    for name, background in (("waits", "false"), ("background", "true")):
        training.train(smoke(chain, "pretrain", *settings, f"async_save={background}", out=tmp_path / name))
    for step in range(1, 5):
        names = [checkpoint.folder_of(tmp_path / name, step) for name in ("waits", "background")]
        one, other = (load_file(folder / "model.safetensors") for folder in names)
        assert all(torch.equal(one[name], other[name]) for name in one)
        rows = [checkpoint.load(folder)[2]["row"] for folder in names]
        assert rows[0] == rows[1]
        assert checkpoint.is_sharded(names[1]) and not checkpoint.is_sharded(names[0])
    states = []
    for folder in names:
        run = training.Run(smoke(chain, "pretrain", *settings))
        run.trainer.resume(folder)
        states.append((run.trainer.optimizer.state_dict()["state"], run.trainer.ema.shadow_params))
    for index, state in states[0][0].items():
        assert all(torch.equal(value, states[1][0][index][key]) for key, value in state.items())
    assert all(torch.equal(one, other) for one, other in zip(states[0][1], states[1][1], strict=True))


@pytest.fixture(scope="module")
def sharded_run(chain, tmp_path_factory):
    """A run of one step with a sharded checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    training.train(smoke(chain, "vae", "steps=1", "async_save=true", out=folder))
    return folder


@pytest.mark.parametrize("fault", ["absent", "cut", "code"])
def test_a_damaged_sharded_checkpoint_is_one_clear_error_and_runs_no_code(sharded_run, fault, tmp_path):
    folder = tmp_path / "step_0000001"
    shutil.copytree(checkpoint.find(sharded_run, "true"), folder)
    (data,) = (folder / "sharded").glob("*.distcp")
    if fault == "absent":
        data.unlink()
    elif fault == "cut":
        data.write_bytes(data.read_bytes()[:100])
    else:
        (folder / "sharded/.metadata").write_bytes(pickle.dumps(Ran(str(tmp_path / "ran"))))
        written = json.loads((folder / "trainer.json").read_text())
        written["sharded"] = sharded.file_sizes(folder)
        (folder / "trainer.json").write_text(json.dumps(written))
    with pytest.raises(MissingError, match="is damaged .*resume from another one"):
        checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


class Ran:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def sharded_muon(num_steps):
    """The weights of a small network after steps of Muon, each process with half of each batch."""
    from accelerate import Accelerator

    from kgcli.training.parallel import find_processes

    class Net(torch.nn.Sequential):
        def idle_parts(self):
            return []

    torch.manual_seed(0)
    net = Net(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 13))
    processes = find_processes(Accelerator(cpu=True), "fsdp2")
    processes.wrap(net)
    cfg = OptimConfig(lr=1e-2, muon_lr=2e-2, warmup_steps=0)
    trainer = Trainer(dict(net.named_parameters()), cfg, num_steps, processes=processes)
    rows = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)) for step in range(num_steps)]
    share = 1.0 / processes.num
    own = [row[processes.rank :: processes.num] for row in rows]
    list(trainer.steps(own, lambda row: [{"square": net(row).square().mean() * share}]))
    return {name: weight.flatten().tolist() for name, weight in processes.full(trainer.trained).items()}


def test_muon_on_sharded_weights_takes_the_steps_of_one_process():
    one, two = (on_processes(num, sharded_muon, 5)[0] for num in (1, 2))
    for name, values in one.items():
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(values), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_half_precision_trains_in_every_way(chain, parallel, accumulate, tmp_path):
    settings = ["steps=3", "precision=fp16", f"parallel={parallel}", f"accumulate={accumulate}", "sample_every=100"]
    whole = training.Run(smoke(chain, "pretrain", "steps=3", out=tmp_path / "whole"))
    training.start(whole)
    wanted = [float(row["loss"]) for row in whole.trainer.steps(whole.batches(None, 0), whole.losses)]
    on_processes(2, train, smoke(chain, "pretrain", *settings, out=tmp_path / "half"))
    assert [row["loss"] for row in rows_of(tmp_path / "half")] == pytest.approx(wanted, rel=0.01)
    assert "scaler" in checkpoint.load(checkpoint.find(tmp_path / "half", "true"))[2]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "num_steps"), [("ddp", 120), ("fsdp2", 60)])
def test_killed_ten_times_two_processes_end_as_if_they_had_not_been(chain, parallel, num_steps, tmp_path):
    settings = [f"steps={num_steps}", "save_every=3", "log_every=3", "sample_every=1000", f"parallel={parallel}"]
    whole, killed = (smoke(chain, "instruct", *settings, out=tmp_path / name) for name in ("whole", "killed"))
    on_processes(2, train, whole)
    randomness = random.Random(0)
    reached = []
    for _ in range(10):
        children = start(2, tmp_path, train, killed)
        before, deadline = checkpoint.list_steps(tmp_path / "killed"), time.monotonic() + 60
        while checkpoint.list_steps(tmp_path / "killed") == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(randomness.uniform(0.0, 0.3))
        for child in randomness.sample(children, 2):  # one sees the other go before it goes itself
            os.kill(child, signal.SIGKILL)
            time.sleep(randomness.uniform(0.0, 0.05))
        for child in children:
            os.waitpid(child, 0)
        reached.append(
            max([checkpoint.load(step)[0] for step in checkpoint.list_steps(tmp_path / "killed")], default=0)
        )
    assert not (tmp_path / "killed/final").exists(), "killed too late to show anything"
    assert reached[-1] > 0
    on_processes(2, train, killed)
    print(f"{parallel}: killed after steps {reached}")
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    one, other = (weights_of(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    final = [load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, final[1][name]) for name, value in final[0].items())

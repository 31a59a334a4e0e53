"""Laws of validation, skipped steps, trackers and the bar: they watch a run and do not change it."""

import contextlib
import json
import pty
import sys
import types

import pytest
import torch
from smoke_runs import rows_of as metrics_of
from smoke_runs import smoke
from torch import nn

from kgcli.data.sample import Fault
from kgcli.errors import ConfigError, MissingError, NotFiniteError
from kgcli.recipe import OptimConfig, load_recipe
from kgcli.training import loop as training
from kgcli.training.checks.report import describe
from kgcli.training.logging import Metrics
from kgcli.training.trainer import Trainer
from kgcli.training.watch import bar as bars
from kgcli.training.watch.faults import FaultLog
from kgcli.training.watch.finite import FiniteSteps

EVERY = ["validation.every=2", "validation.samples=8"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def nano(folder, *overrides):
    recipe = load_recipe("smoke/instruct", ["data.batch_size=4", "data.pool=8", "data.num_workers=0", *overrides])
    start = {"model": "nano", "decoder": "nano/decoder"}
    return recipe.model_copy(update={"output_dir": str(folder), "init_from": start})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of one run with validation and one without."""
    root = tmp_path_factory.mktemp("runs")
    training.train(nano(root / "without"))
    training.train(nano(root / "with", *EVERY))
    return root


def test_validation_changes_nothing_of_the_training(runs):
    assert files_of(runs / "with/final") == files_of(runs / "without/final")
    assert metrics_of(runs / "with") == metrics_of(runs / "without")


def test_validation_losses_are_those_of_held_out_samples_with_the_same_noise(runs):
    rows = rows_of(runs / "with/validation.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["validation_loss"] == row["validation_diffusion"] > 0 for row in rows)
    run = training.Run(nano(runs / "with", *EVERY))
    validation = training.Validation(run)
    first = validation()
    assert validation() == first
    trained = {sample.caption for sample in map(run.source.sample, range(64))}
    held_out = {sample.caption for sample in map(validation.source.sample, range(8))}
    assert validation.num_batches == 2 and run.stage.training and held_out != trained
    assert not (runs / "without/validation-pool").exists()


def test_a_resumed_run_validates_at_the_same_steps(runs):
    before = rows_of(runs / "with/validation.jsonl")
    metrics = Metrics(nano(runs / "with", *EVERY), 2, {})
    metrics.__exit__()
    assert rows_of(runs / "with/validation.jsonl") == before[:1]


def test_a_recipe_of_files_names_those_that_are_held_out(tmp_path):
    (tmp_path / "seen.txt").write_text("a cat in the snow\ntwo dogs on the beach\n")
    (tmp_path / "held_out.txt").write_text("an owl\n")
    sources = [f'data.sources=[{{"kind": "captions", "path": "{tmp_path}/seen.txt"}}]', "data.kinds={}"]
    recipe = load_recipe("smoke/align", [*sources, *EVERY, "data.batch_size=2"])
    start = {"model": "nano", "text": "nano/decoder"}
    recipe = recipe.model_copy(update={"output_dir": str(tmp_path / "run"), "init_from": start})
    with pytest.raises(ConfigError, match=r"validation.every needs validation.sources"):
        describe(recipe)
    other = [f'validation.sources=[{{"kind": "captions", "path": "{tmp_path}/held_out.txt"}}]']
    recipe = load_recipe("smoke/align", [*sources, *EVERY, *other, "data.batch_size=2"])
    assert recipe.validation.sources[0].path == f"{tmp_path}/held_out.txt"
    lost = [f'validation.sources=[{{"kind": "captions", "path": "{tmp_path}/lost.txt"}}]']
    lacking = describe(nano(tmp_path, *EVERY, *lost)).missing
    assert len(lacking) == 1 and "lost.txt" in lacking[0]


# ---------------------------------------------------------------- steps that are not finite


def trainer_of(cfg=None, ema_decay=None):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    return layer, Trainer(dict(layer.named_parameters()), cfg or OptimConfig(warmup_steps=0), 50, ema_decay=ema_decay)


def take(layer, trainer, batches):
    return list(trainer.steps(batches, lambda batch: [{"square": layer(batch).square().mean()}]))


GOOD, BAD = torch.ones(4, 16), torch.full((4, 16), torch.nan)


@pytest.mark.parametrize("muon", [None, 0.01])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_with_nan_leaves_weights_and_moments_as_they_are(muon, bad):
    cfg = OptimConfig(warmup_steps=0, muon_lr=muon)
    (one, skipping), (other, plain) = trainer_of(cfg), trainer_of(cfg)
    rows = take(one, skipping, [GOOD, torch.full((4, 16), bad)])
    take(other, plain, [GOOD])
    assert [float(row["skipped"]) for row in rows] == [0.0, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    states = [[v for s in t.optimizer.state.values() for v in s.values()] for t in (skipping, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert skipping.step == 2  # the data go on


def test_finite_steps_are_those_of_the_optimizer_alone():
    (one, trainer), (other, _) = trainer_of(), trainer_of()
    take(one, trainer, [GOOD, 2 * GOOD])
    cfg = OptimConfig(warmup_steps=0)
    plain = torch.optim.AdamW(
        [{"params": [other.weight], "weight_decay": 0.01}, {"params": [other.bias], "weight_decay": 0.0}],
        lr=cfg.lr,
        betas=cfg.betas,
        eps=cfg.eps,
        fused=True,
    )
    for step, batch in enumerate([GOOD, 2 * GOOD]):
        for group in plain.param_groups:
            group["lr"] = cfg.lr * (1 - step / 50)
        other(batch).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), cfg.clip_norm)
        plain.step()
        plain.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_many_skipped_steps_in_a_row_end_the_run():
    layer, trainer = trainer_of()
    take(layer, trainer, [BAD, BAD, GOOD, BAD, BAD])
    trainer.finite.check(trainer.step, 3)
    take(layer, trainer, [BAD])
    with pytest.raises(NotFiniteError, match=r"in 3 steps in a row, up to step 6; .* Lower optim\.lr"):
        trainer.finite.check(trainer.step, 3)


def test_a_run_that_ends_so_leaves_its_last_checkpoint_and_no_nan(tmp_path, monkeypatch):
    broken = FiniteSteps.step

    def step(self, norm):
        self.num = getattr(self, "num", 0) + 1
        return broken(self, norm if self.num < 3 else torch.tensor(torch.nan))

    monkeypatch.setattr(FiniteSteps, "step", step)
    with pytest.raises(NotFiniteError):
        training.train(nano(tmp_path, "steps=9", "max_skipped=3", "save_every=1"))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_0000003", "step_0000004"]
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [None, None, 1.0, 1.0]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


# ---------------------------------------------------------------- trackers and the bar


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(tmp_path):
    for start in (training.train, describe):
        recipe = nano(tmp_path / "run", "trackers=[wandb]")
        if start is describe:
            assert "trackers: wandb is not installed; `pip install wandb`" in describe(recipe).missing[0]
        else:
            with pytest.raises(MissingError, match="trackers: wandb is not installed"):
                start(recipe)
    assert not (tmp_path / "run").exists()


def test_an_installed_tracker_gets_the_recipe_and_every_row(tmp_path, monkeypatch):
    """A library with the interface that accelerate calls, as it is not a requirement of the package."""
    logged, configs, ended = [], [], []
    library = types.ModuleType("trackio")
    library.__spec__ = types.SimpleNamespace(name="trackio")
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: ended.append(True)
    )
    library.init = lambda project, name: run
    library.config = types.SimpleNamespace(update=lambda values, allow_val_change: configs.append(values))
    monkeypatch.setitem(sys.modules, "trackio", library)
    training.train(smoke(tmp_path, "vae", "steps=2", "trackers=[trackio]", *EVERY))
    assert [step for step, _ in logged] == [1, 2, 2] and "validation_loss" in logged[2][1]
    assert configs[0]["stage"] == "vae" and ended == [True]


def test_there_is_no_bar_where_there_is_no_terminal(capsys):
    bar = bars.Bar(4, 0)
    bar.update(1)
    bar.show(0.5)
    bar.stop()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_bar_shows_steps_loss_and_memory(monkeypatch):
    import os

    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = bars.Bar(4, 1)
        bar.update(2)
        bar.show(0.125)
        bar.stop()
        terminal.flush()
    told = b""
    with contextlib.suppress(OSError):  # a terminal that nobody writes to ends in an error; one read may give a part
        while part := os.read(master, 1 << 16):
            told += part
    os.close(master)
    assert b"2/4" in told and b"loss 0.125" in told and b"GiB" in told


def test_faults_that_earlier_versions_wrote_by_process_count_too(tmp_path):
    for name, row in (("faults.0.jsonl", "1"), ("faults.1.jsonl", "2"), ("faults.jsonl", "2")):
        with (tmp_path / name).open("a") as file:
            file.write(json.dumps({"file": "a.tar", "row": row, "reason": "no image"}) + "\n")
    log = FaultLog(tmp_path / "faults.jsonl", 2)
    assert log.summary() == "a.tar: 2"
    log.note([Fault("a.tar", "1", "no image")])
    with pytest.raises(MissingError, match="3 rows of the data cannot be read"):
        log.note([Fault("a.tar", "3", "no image")])


def test_faults_that_may_pass_are_listed_but_never_end_a_run(tmp_path):
    path = tmp_path / "faults.jsonl"
    passing = [Fault("http://x/a.tar", f"{n}", "the server answers 503", passing=True) for n in range(9)]
    FaultLog(path, 1).note([*passing, Fault("b.tar", "1", "no image")])
    resumed = FaultLog(path, 1)
    resumed.note(passing)
    assert len(rows_of(path)) == 10 and resumed.summary() == "b.tar: 1"
    with pytest.raises(MissingError, match=r"^2 rows of the data cannot be read, .* allows 1: .*http://x/a\.tar: 1"):
        resumed.note([Fault("http://x/a.tar", "0", "its jpg is not an image")])

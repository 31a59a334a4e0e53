"""Laws of `train: lora` and `train: aligner`: what moves, what is exported, and that it learns."""

import json
import signal
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from kgcli.data.loader import Batches
from kgcli.errors import ConfigError, IncompatibleError
from kgcli.model.randomness import StepRandom
from kgcli.recipe import load_recipe
from kgcli.training import loop as training
from kgcli.training import run as runs
from kgcli.weights.load import load_kosmosg
from kgcli.weights.safetensors import read_weights
from kgcli.weights.shipped import DEFAULT_MODEL

SMALL = ["data.batch_size=4", "data.pool=8", "data.kinds={caption: 1.0}", "steps=4", "optim.warmup_steps=0"]
LORA = ["train=lora", "lora.rank=4", "lora.alpha=8"]
START = {"model": "nano", "decoder": "nano/decoder"}


def recipe_of(folder, *overrides):
    """The smoke recipe of instruct from the shipped model."""
    recipe = load_recipe("smoke/instruct", [*SMALL, *overrides], stage="instruct")
    return recipe.model_copy(update={"output_dir": str(folder), "init_from": START})


@pytest.fixture(scope="module", params=["lora", "aligner"])
def trained(request, tmp_path_factory):
    """Mode and run folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    training.train(recipe_of(folder, *(LORA if request.param == "lora" else ["train=aligner"])))
    return request.param, folder


def test_only_what_is_named_moves(trained):
    mode, folder = trained
    before, after = (read_weights(place / "model.safetensors") for place in (DEFAULT_MODEL, folder / "final"))
    moved = {name for name in after if not torch.equal(before[name].float(), after[name])}
    assert before.keys() == after.keys()
    if mode == "aligner":
        assert moved and all(name.startswith("aligner.encoder.") for name in moved)
    else:
        layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
        linears = {f"mllm.stack.layers.{n}" for n in range(len(load_kosmosg(DEFAULT_MODEL).mllm.stack.layers))}
        assert {name.rsplit(".", 3)[0] for name in moved} == linears
        assert all(name.split(".")[-2] in layers and name.endswith(".weight") for name in moved)


def test_a_checkpoint_holds_what_trains_alone(trained):
    mode, folder = trained
    names = load_file(folder / "checkpoints/step_0000004/model.safetensors").keys()
    assert all((".lora_" in name) if mode == "lora" else name.startswith("model.aligner.encoder.") for name in names)


def test_the_result_generates_and_another_run_can_start_from_it(trained, tmp_path):
    import kgcli

    mode, folder = trained
    model = kgcli.load(str(folder / "final"), device="cpu")
    assert model.generate("a cat", seed=0, num_inference_steps=1)[0].size == (128, 128)
    again = recipe_of(tmp_path, "steps=1", f"train={mode}").model_copy(
        update={"init_from": {"model": str(folder / "final"), "decoder": str(folder / "final/decoder")}}
    )
    training.train(again)
    assert (tmp_path / "final/config.json").is_file()


class Stopping(Batches):
    """The third batch comes with a SIGTERM."""

    def __getitem__(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(step)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(trained, tmp_path, monkeypatch):
    mode, folder = trained
    own = LORA if mode == "lora" else ["train=aligner"]
    monkeypatch.setattr(runs, "Batches", Stopping)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe_of(tmp_path / "run", *own))
    monkeypatch.undo()
    training.train(recipe_of(tmp_path / "run", *own), resume="true")
    one, other = (load_file(place / "final/model.safetensors") for place in (folder, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A finished LoRA run without a running mean."""
    folder = tmp_path_factory.mktemp("lora")
    training.train(recipe_of(folder, *LORA, "ema_decay=null"))
    return folder


def test_peft_reads_the_adapter_and_its_merge_is_the_exported_model(lora):
    settings = json.loads((lora / "final/adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8, None)
    base, exported = load_kosmosg(DEFAULT_MODEL), load_kosmosg(lora / "final")
    merged = peft.PeftModel.from_pretrained(base.mllm, str(lora / "final/adapter")).merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, exported.mllm.state_dict()[name], rtol=0, atol=1e-6)


def test_the_adapters_change_nothing_until_they_have_trained(tmp_path):
    stage = training.Run(recipe_of(tmp_path, *LORA)).stage.eval()
    tokens = torch.tensor([[0, 7, 9, 12]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    given = load_kosmosg(DEFAULT_MODEL)
    with torch.no_grad():
        assert torch.equal(stage.model.encode(tokens, mask, ~mask), given.encode(tokens, mask, ~mask))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["train=lora", "lora.targets=[q_proj, qkv]"], ConfigError, "no linear layers qkv; it has fc1, fc2"),
        (["train=lora", "parts.aligner={num_layers: 1}"], ConfigError, "would leave untrained"),
        (["train=lora", "lora.rank=0"], ConfigError, "lora.rank: .*greater than or equal to 1"),
        (["train=qlora"], ConfigError, "train: .*'full', 'lora' or 'aligner'"),
        (["lora.r=4"], ConfigError, "unknown key lora.r"),
        (["options.min_timestep=1000"], ConfigError, "min_timestep is 1000; the decoder's timesteps are 0 to 999"),
        (["options.min_timestep=-1"], ConfigError, "min_timestep is -1"),
        (["options.high_noise=1.5", "options.stratified=1"], ConfigError, "high_noise is 1.5; it must be a fraction"),
        (
            ["options.high_noise=0.5", "options.stratified=1", "options.min_timestep=800"],
            ConfigError,
            "set options.high_noise=0",
        ),
        (["options.high_noise=0.5"], ConfigError, "fraction of stratified timesteps; set options.stratified=1"),
        (["options.low_noise=0.5"], ConfigError, "low_noise is a fraction of stratified timesteps"),
        (["options.low_noise=-0.1", "options.stratified=1"], ConfigError, "low_noise is -0.1; it must be a fraction"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(overrides, error, message, tmp_path):
    with pytest.raises(error, match=message):
        training.Run(recipe_of(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["options.min_timestep=900"], 900),
        (["options.stratified=1", "options.min_timestep=900"], 900),
        (["options.stratified=1", "options.min_timestep=100", "options.high_noise=1.0"], 800),
    ],
)
def test_no_timestep_before_the_first_one_asked_for_is_drawn(options, first, tmp_path, monkeypatch):
    run, drawn = training.Run(recipe_of(tmp_path, *options, "data.batch_size=8")), []
    scheduler = run.stage.diffusion.noise_scheduler
    add_noise = scheduler.add_noise
    monkeypatch.setattr(
        scheduler, "add_noise", lambda x, noise, steps: drawn.append(steps) or add_noise(x, noise, steps)
    )
    batch = next(run.batches(run.pool(), 0))
    run.stage(batch, StepRandom(0, 0, batch.numbers))
    (steps,) = drawn
    assert first <= steps.min() <= steps.max() <= 999
    if "options.stratified=1" in options:  # one in each eighth, give or take
        assert ((steps.sort().values - first) * 8 / (1000 - first) - torch.arange(8)).abs().max() <= 2


def test_other_stages_train_in_full():
    with pytest.raises(ConfigError, match="train: lora is for stage instruct; stage align takes train: full alone"):
        load_recipe("smoke/align", ["train=lora"])


def test_a_run_is_not_resumed_in_another_mode(lora, tmp_path):
    newest = lora / "checkpoints/step_0000004"
    with pytest.raises(IncompatibleError, match="train was lora, is aligner"):
        training.train(recipe_of(tmp_path, "train=aligner"), resume=str(newest))
    with pytest.raises(IncompatibleError, match=r"lora\.alpha was 8\.0, is 16\.0"):
        training.train(recipe_of(tmp_path, "train=lora", "lora.rank=4"), resume=str(newest))


def held_loss(stage, batch):
    """The loss of a batch with one fixed set of noise and timesteps."""
    from kgcli.model.randomness import StepRandom

    stage.eval()
    with torch.no_grad():
        losses = [float(stage(batch, StepRandom(9, step, batch.numbers))["diffusion"]) for step in range(4)]
    stage.train()
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "aligner"])
def test_it_lowers_the_loss_of_the_shipped_model(mode, tmp_path):
    settings = ["data.batch_size=16", "data.pool=16", "data.kinds={compositional: 0.5, edit: 0.5}", "steps=60"]
    rate = "1e-2" if mode == "lora" else "1e-3"
    recipe = recipe_of(tmp_path, *settings, f"train={mode}", f"optim.lr={rate}", "optim.warmup_steps=5")
    run = training.Run(recipe)
    pool = run.pool()
    batch = next(run.batches(pool, 0))
    before = held_loss(run.stage, batch)
    for _ in run.trainer.steps(run.batches(pool, 0), run.losses):
        pass
    after = held_loss(run.stage, batch)
    print(f"{mode}: {before:.4f} -> {after:.4f}")
    assert after < 0.985 * before


def test_the_shipped_recipe_can_train_so_too():
    assert load_recipe("nano/instruct", ["train=lora"]).lora.rank == 16
    assert Path(load_recipe("nano/instruct", ["train=aligner"]).output_dir)

"""Laws of `--dry-run`: full-size recipes are counted without their weights, and everything that lacks is listed."""

import shutil

import pytest
import torch

from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.recipe import load_recipe
from kgcli.training.checks.compute import SampleSize, count_step, find_trained
from kgcli.training.checks.memory import gib, hidden_bytes
from kgcli.training.checks.report import describe
from kgcli.training.checks.shapes import ShapeSetup
from kgcli.training.stages import find_stage, make_setup
from kgcli.weights.config import read_model_config
from kgcli.weights.decoder import shape_decoder
from kgcli.weights.load import load_kosmosg
from kgcli.weights.safetensors import read_weights
from kgcli.weights.shipped import DEFAULT_MODEL

# Recipe -> trained parameters. Source: the published model's own count of both stages.
FULL_SIZE = {
    "kosmosg/pretrain": 1_371_794_432,
    "kosmosg/align": 476_031_488,
    "kosmosg/instruct": 1_597_256_192,
    "kosmosg/8gpu/align": 476_031_488,
    "kosmosg/8gpu/instruct": 1_597_256_192,
    "kosmosg/one-gpu/align": 476_031_488,
    "kosmosg/one-gpu/aligner": 225_461_760,
    "kosmosg/one-gpu/instruct": 32 * 24 * (4 * 2 * 2048 + 2 * (2048 + 8192)),  # rank x layers x sides of the matrices
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No run, model or cache of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_recipe_is_counted_and_what_it_lacks_is_listed(name, tmp_path):
    plan = describe(load_recipe(name), tflops=60)
    trained = FULL_SIZE[name]
    assert f"{trained:>14,} trained" in next(line for line in plan.lines if "in all " in line)
    assert any("time at 60 TFLOP/s" in line for line in plan.lines)
    assert any("torchrun --nproc_per_node=8 -m kgcli" in line for line in plan.lines)
    recipe = load_recipe(name)
    lacking = [source.path for source in recipe.data.sources] + [
        start for start in recipe.init_from.values() if start.startswith("runs/") or start == "kosmos-2"
    ]
    assert len(plan.missing) == len(lacking)
    assert all(any(what in line for line in plan.missing) for what in lacking)
    assert not list(tmp_path.glob("runs"))


def test_the_command_says_what_is_missing_and_leaves_with_3(kg):
    ran = kg("align", "kosmosg/align", "--dry-run")
    assert ran.code == 3
    assert "476,031,488 trained" in ran.out
    assert "missing: init_from.model: there is no folder runs/kosmosg/pretrain/final; `kg pretrain kosmosg/" in ran.out
    assert "2 part(s) of this recipe are not on this machine" in ran.err
    assert kg("instruct", "example-data/instruct", "--dry-run").code == 0


def stage_of(name):
    setup = make_setup(load_recipe(name), lambda num, seed: [], ShapeSetup)
    stage = setup.build(find_stage(setup.stage))
    stage.freeze()
    return stage


def test_work_is_that_of_the_published_model():
    recipe = load_recipe("kosmosg/instruct")
    stage = stage_of("kosmosg/instruct")
    trained = find_trained(stage)
    costs = {cost.part: cost for cost in count_step(stage.requires_grad_(False), recipe, SampleSize(77, 1), trained)}
    gflop = {part: cost.forward / 1e9 for part, cost in costs.items()}
    assert gflop["unet"] == pytest.approx(803, rel=0.002)
    assert gflop["vision"] == pytest.approx(162, rel=0.002)
    assert gflop["resampler"] == pytest.approx(7.7, rel=0.002)
    assert gflop["aligner.encoder"] == pytest.approx(31, rel=0.02)
    assert gflop["mllm"] == pytest.approx(2.42 * 77, rel=0.02)
    # A frozen U-Net gives its gradient for one forward pass more, a trained stack for two.
    assert costs["unet"].backward == costs["unet"].forward
    assert costs["mllm"].backward == pytest.approx(2 * costs["mllm"].forward)
    assert costs["vision"].backward == pytest.approx(2 / 24 * costs["vision"].forward, rel=0.02)  # its last block


@pytest.mark.parametrize(("train", "times"), [("full", 2.0), ("lora", 1.0), ("aligner", 0.0)])
def test_a_backward_pass_goes_as_far_as_what_trains(train, times):
    recipe = load_recipe("nano/instruct", [f"train={train}"])
    recipe = recipe.model_copy(update={"init_from": {"model": "nano", "decoder": "nano/decoder"}})
    setup = make_setup(recipe, lambda num, seed: [], ShapeSetup)
    stage = setup.build(find_stage("instruct"))
    stage.freeze()
    trained = find_trained(stage)
    costs = {cost.part: cost for cost in count_step(stage.requires_grad_(False), recipe, SampleSize(40, 1), trained)}
    assert costs["mllm"].backward == pytest.approx(times * costs["mllm"].forward, rel=0.2)
    assert costs["aligner.encoder"].backward > 0 and costs["unet"].backward == costs["unet"].forward


def test_shapes_are_those_of_the_weights():
    real, shapes = load_kosmosg(DEFAULT_MODEL), load_kosmosg(DEFAULT_MODEL, device="meta")
    assert {name: value.shape for name, value in real.state_dict().items()} == {
        name: value.shape for name, value in shapes.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in shapes.parameters())
    decoder = shape_decoder(DEFAULT_MODEL / "decoder")
    stored = read_weights(DEFAULT_MODEL / "decoder/unet/diffusion_pytorch_model.safetensors")
    assert {name: value.shape for name, value in decoder.unet.state_dict().items()} == {
        name: value.shape for name, value in stored.items()
    }


def nano(tmp_path, *overrides):
    recipe = load_recipe("smoke/instruct", ["data.batch_size=4", "data.pool=8", *overrides])
    start = {"model": "nano", "decoder": "nano/decoder"}
    return recipe.model_copy(update={"output_dir": str(tmp_path / "run"), "init_from": start})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["activation_checkpointing=[clip]"], "activation_checkpointing: stage instruct has no part clip"),
        (["compile=[controlnet]"], "compile: stage instruct has no part controlnet"),
        (["accumulate=3"], "which 3 micro-batches cannot split evenly"),
        (["data.pool=null"], r"set data\.pool"),
        (["data.kinds={text: 1}"], "needs samples with target"),
        (["options.edges=1"], r"unknown key options\.edges"),
        (["parts.aligner={layers: 2}"], r"parts\.aligner: unknown key layers"),
        (["train=lora", "lora.targets=[qkv]"], "no linear layers qkv"),
    ],
)
def test_it_refuses_what_a_run_refuses(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        describe(nano(tmp_path, *overrides))


def test_scalars_that_fp16_cannot_shard_are_told_before_there_are_processes(monkeypatch):
    recipe = load_recipe("smoke/clip", ["precision=fp16", "parallel=fsdp2"])
    told = [line for line in describe(recipe).lines if "clip.logit_scale" in line]
    assert len(told) == 1 and told[0].strip().startswith("runs on one process alone: stage clip trains a scalar")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="stage clip trains a scalar"):
        describe(recipe)


def test_cached_hidden_states_count_on_disk(tmp_path):
    lines = describe(nano(tmp_path, "train=aligner", "data.hidden=true", "data.keep=true")).lines
    length = next(int(line.split("tokens (4, ")[1].split(")")[0]) for line in lines if "one batch: " in line)
    wanted = gib(8 * length * hidden_bytes(read_model_config(DEFAULT_MODEL).mllm.width, "fp32"))
    assert any(f"hidden states about {wanted} GiB" in line for line in lines)


def test_weights_that_do_not_fit_are_found_without_being_read(tmp_path):
    model = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"ffn_width": 768', '"ffn_width": 760', 1))
    recipe = nano(tmp_path).model_copy(update={"init_from": {"model": str(model), "decoder": "nano/decoder"}})
    with pytest.raises(IncompatibleError, match="do not fit this model"):
        describe(recipe)
    (model / "decoder/unet/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    recipe = nano(tmp_path).model_copy(update={"init_from": {"model": "nano", "decoder": str(model / "decoder")}})
    with pytest.raises(MissingError, match="is damaged"):
        describe(recipe)


def test_memory_counts_what_a_run_holds(tmp_path):
    from kgcli.training.checks.memory import measure

    layer = torch.nn.Linear(20, 10)
    layer.bias.requires_grad_(False)
    plain = measure(layer, nano(tmp_path, "ema_decay=null"))
    assert (plain.frozen, plain.trained, plain.optimizer, plain.mean) == (40, 800, 1600, 0)
    assert (plain.total, plain.checkpoint) == (40 + 4 * 800, 3 * 800)
    assert measure(layer, nano(tmp_path, "ema_decay=0.9")).mean == 800
    # Muon keeps one moment of the matrices, of which the layer is too small to be one.
    assert measure(torch.nn.Linear(20, 20, bias=False), nano(tmp_path, "optim.muon_lr=0.1")).optimizer == 1600


def test_the_time_is_that_of_the_run_once_it_has_measured(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "samples_per_second": 2.0}\n{"step": 2, "samp')
    lines = describe(nano(tmp_path)).lines
    assert any("time at 2 samples/s, as this run measured: 8 seconds" in line for line in lines)


@pytest.mark.parametrize("start", ["nano", "runs/absent/final"])
def test_a_part_that_the_stage_does_not_start_from_is_refused(tmp_path, start):
    recipe = nano(tmp_path)
    wrong = recipe.model_copy(update={"init_from": {**recipe.init_from, "modell": start}})
    with pytest.raises(ConfigError, match=r"init_from\.modell: stage \w+ has no such part to start from"):
        describe(wrong)

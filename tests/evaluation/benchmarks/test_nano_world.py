"""Laws of the nano world of evaluation: only models, networks and runs that belong to it are measured."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kgcli.data.sources import open_source
from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.world import Truth
from kgcli.evaluation.benchmarks import nano as suites
from kgcli.evaluation.benchmarks import nano_world
from kgcli.evaluation.benchmarks.nano_skills import load_judges
from kgcli.evaluation.benchmarks.nano_world import (
    VERSION,
    check_decoder,
    check_method,
    check_model,
    check_version,
    find_weights,
)
from kgcli.evaluation.extractors.nano import NanoDino
from kgcli.evaluation.plan import PLAN, DreamBenchOptions
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.nano_score import score_nano
from kgcli.model.nano_evaluators import EvalVit
from kgcli.model.nano_recognisers import Recognisers
from kgcli.recipe import load_recipe
from kgcli.training.stages import make_stage
from kgcli.weights.folder import open_model

VIT = {"img_size": 64, "patch_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 1}


def diffusers_folder(folder, latents, blocks):
    """The configurations of a decoder, with a tensor each."""
    configs = {"unet": {"sample_size": latents}, "vae": {"block_out_channels": [8] * blocks}}
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file({"w": torch.zeros(1)}, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def model_of(folder, source, width, height=None):
    """A copy of a model folder that makes images of a size, by default square ones."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["generation"] |= {"width": width, "height": height or width}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def from_another_world(folder, size):
    """Change the configuration of a network to that of a world of a size; None: of the first, which named none."""
    config = json.loads((folder / "config.json").read_text())
    config["world"] = size
    if size is None:
        del config["world"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("size", [64, 512])
def test_models_of_another_size_are_refused_in_one_line(tiny_model, tmp_path, size):
    folder = model_of(tmp_path / "model", tiny_model, size)
    for check in (
        lambda: check_model(open_model(str(folder))),
        lambda: check_method(MethodOptions(model=str(folder))),
    ):
        with pytest.raises(IncompatibleError, match=f"makes images of {size} px; the nano world has images of 128 px"):
            check()
    check_model(open_model(str(model_of(tmp_path / "fitting", tiny_model, 128))))


@pytest.mark.parametrize("size", [(128, 64), (64, 128)])
def test_models_of_images_that_are_not_square_are_refused(tiny_model, tmp_path, size):
    folder = model_of(tmp_path / "model", tiny_model, *size)
    with pytest.raises(IncompatibleError, match=f"makes images of {size[0]} x {size[1]} px"):
        check_model(open_model(str(folder)))


@pytest.mark.parametrize("command", [("nano",), ("adapters",)])
def test_the_commands_refuse_them_before_the_engine_loads(kg, without_engine, tiny_model, tmp_path, command):
    ran = kg("eval", *command, "--model", model_of(tmp_path / "model", tiny_model, 64))
    assert ran.code == IncompatibleError.exit_code and "makes images of 64 px" in ran.err


def test_adapters_of_a_decoder_of_another_size_are_refused_before_the_engine_loads(
    kg, without_engine, tiny_model, tmp_path
):
    model = model_of(tmp_path / "model", tiny_model, 128)
    decoder = shutil.copytree(tiny_model / "decoder", tmp_path / "decoder")
    config = json.loads((decoder / "unet/config.json").read_text())
    blocks = len(json.loads((decoder / "vae/config.json").read_text())["block_out_channels"])
    (decoder / "unet/config.json").write_text(json.dumps(config | {"sample_size": 512 // 2 ** (blocks - 1)}))
    ran = kg("eval", "adapters", "--model", model, "--decoder", decoder)
    assert ran.code == IncompatibleError.exit_code and "decoder makes images of 512 px" in ran.err


@pytest.mark.parametrize("suite", ["nano", "nano-coco"])
def test_a_benchmark_refuses_them_before_it_renders(kg, tiny_model, tmp_path, suite):
    command = ("coco", "--suite", "nano") if suite == "nano-coco" else ("dreambench", "--suite", "nano")
    ran = kg("eval", *command, "--model", model_of(tmp_path / "model", tiny_model, 64), "-o", "run", "--data", "data")
    assert ran.code == IncompatibleError.exit_code and "makes images of 64 px" in ran.err
    assert not (tmp_path / "run").exists() and not (tmp_path / "data").exists()


def test_a_decoder_given_alone_has_to_fit_too(tmp_path):
    check_decoder(diffusers_folder(tmp_path / "decoder", latents=16, blocks=4))
    small = diffusers_folder(tmp_path / "small", 16, 3)
    for check in (lambda: check_decoder(small), lambda: check_method(MethodOptions(decoder=str(small)))):
        with pytest.raises(IncompatibleError, match="small makes images of 64 px"):
            check()
    with pytest.raises(MissingError, match="unet/config.json"):
        check_decoder(tmp_path)


def test_a_decoder_on_the_hub_has_to_fit_as_a_folder_has(tmp_path, monkeypatch):
    folder = diffusers_folder(tmp_path / "snapshot", latents=64, blocks=4)
    for file in folder.rglob("*.safetensors"):
        file.unlink()  # configurations alone are fetched
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(nano_world, "snapshot", lambda *given, **options: asked.append((given, options)) or folder)
    with pytest.raises(IncompatibleError, match="some/decoder makes images of 512 px"):
        check_method(MethodOptions(decoder="some/decoder", offline=True))
    assert asked == [(("some/decoder",), {"files": ["unet/config.json", "vae/config.json"], "offline": True})]


def test_a_model_given_with_a_decoder_has_to_fit_too(tiny_model, tmp_path):
    decoder = diffusers_folder(tmp_path / "decoder", latents=16, blocks=4)
    model = model_of(tmp_path / "model", tiny_model, 64)
    check_method(MethodOptions(decoder=str(decoder)))
    with pytest.raises(IncompatibleError, match="model makes images of 64 px"):
        check_method(MethodOptions(model=str(model), decoder=str(decoder)))


def test_folders_that_cannot_be_read_are_left_to_the_method(tmp_path):
    check_method(MethodOptions(model=str(tmp_path / "nowhere")))
    check_method(MethodOptions(decoder=str(tmp_path)))


def test_runs_of_an_earlier_world_are_refused(kg, tmp_path):
    method = Truth(MethodOptions()).facts()
    plan = suites.dreambench_plan("0" * 64, Path("data"), DreamBenchOptions(num_images=1), method)
    check_version(plan.protocol, tmp_path)
    plan.protocol["version"] = VERSION - 1
    run = RunFolder.start(tmp_path / "run", plan)
    with pytest.raises(IncompatibleError, match=r"run was made by version 1 of the nano suites.*generate again"):
        score_nano(run, tmp_path / "cache")
    ran = kg("eval", "dreambench", "--suite", "nano", "--only", "score", "-o", "run")
    assert ran.code == IncompatibleError.exit_code and "version 1 of the nano suites" in ran.err
    assert [path.name for path in run.path.iterdir()] == [PLAN]


# ---------------------------------------------------------------- who judges


def test_judges_of_another_world_are_refused(tmp_path):
    Recognisers([8, 16], [8, 16], 8).save(tmp_path)
    load_judges(tmp_path)
    for size in (64, None):
        with pytest.raises(IncompatibleError, match=r"another world than that of 128 px; `kg base judge nano/judge`"):
            load_judges(from_another_world(tmp_path, size))


def test_judges_of_other_classes_are_trained_anew(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"heads": {"noun": 3}, "world": 128}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(IncompatibleError, match="trained on another world; train them: `kg base judge nano/judge`"):
        Recognisers.load(tmp_path)


def test_extractors_of_another_world_are_refused(tmp_path):
    EvalVit(VIT, 8).save(tmp_path)
    assert NanoDino(tmp_path).facts()["sizes"] == {"vit": VIT, "width": 8}
    assert EvalVit.load(tmp_path).config == {"vit": VIT, "width": 8}
    for size in (64, None):
        from_another_world(tmp_path, size)
        for load in (NanoDino, EvalVit.load):
            with pytest.raises(IncompatibleError, match="kg base eval_dino nano/eval_dino"):
                load(tmp_path)


@pytest.mark.parametrize("stage", ["judge", "eval_clip", "eval_dino"])
def test_networks_are_of_the_world_whose_images_their_run_shows(stage, tmp_path):
    found = {}
    for size in (64, 128):
        few = ["options.captions=300"] if stage == "eval_clip" else []
        recipe = load_recipe(f"smoke/{stage}", [f"image_size={size}", *few])
        make_stage(recipe, open_source(recipe.data, size, "match").texts).export(tmp_path / str(size))
        (config,) = (tmp_path / str(size)).glob("*/config.json")
        found[size] = json.loads(config.read_text())["world"]
    assert found == {64: 64, 128: 128}


def test_weights_of_a_folder_are_checked_all_at_once(tmp_path):
    shipped = find_weights()
    assert shipped.judges.is_dir() and shipped.evaluators.is_dir()
    Recognisers([8, 16], [8, 16], 8).save(tmp_path / "judges")
    with pytest.raises(MissingError, match="eval_clip nano/eval_clip"):
        find_weights(tmp_path)

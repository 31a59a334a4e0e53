"""Laws of the stages that make adapters, of what they are measured with, and of the two that ship."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from kgcli import engine
from kgcli.data.sample import Sample, Target
from kgcli.data.sources.world import draw
from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.evaluation.benchmarks import nano_adapters as suite
from kgcli.evaluation.benchmarks.skills import case_of, draw_cases, skills_plan, write_inputs
from kgcli.evaluation.metrics.exact import StyleScale, edge_f1
from kgcli.evaluation.metrics.intervals import estimate
from kgcli.evaluation.report.skills import Row
from kgcli.files import recipes_folder
from kgcli.inference.adapters.control_maps import make_map
from kgcli.inference.adapters.named import find_controlnet, read_lora
from kgcli.inference.metadata import read_metadata
from kgcli.recipe import load_recipe
from kgcli.training import loop as training
from kgcli.training.stages.adapters import MapCollator, Steering, make_controlnet
from kgcli.training.stages.clip import clip_tokenizer
from kgcli.weights.decoder import load_decoder
from kgcli.weights.lora.header import LORA_NAME
from kgcli.weights.ship import ship
from kgcli.weights.shipped import ADAPTERS, find_adapter
from kgcli.world.rendering import render, stylize
from kgcli.world.tables import ADAPTER_STYLES, SIZE, STYLES, is_held_out_combination

STAGES = ("controlnet", "lora")
LENGTH = 16  # tokens of a caption


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A diffusers folder at the sizes of the smoke recipes, with random weights."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    parts = load_recipe("smoke/unet").parts
    captions = [draw({"captioned": 1.0}, 0, index, 64).caption for index in range(200)]
    tokenizer = clip_tokenizer(captions, 600, LENGTH)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=LENGTH, hidden_size=32, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel.from_config(parts["unet"]).save_pretrained(folder / "unet")
    AutoencoderKL.from_config(load_recipe("smoke/vae").parts["vae"]).save_pretrained(folder / "vae")
    DDIMScheduler.from_config(parts["scheduler"]).save_pretrained(folder / "scheduler")
    return folder


def smoke(decoder, stage, out, *overrides):
    """The smoke recipe of a stage on that decoder."""
    settings = ["data.batch_size=4", "data.pool=8", f"init_from.decoder={decoder}", f"output_dir={out}"]
    return load_recipe(f"smoke/{stage}", [*settings, *overrides], stage=stage)


@pytest.fixture(scope="module")
def runs(decoder, tmp_path_factory):
    """A finished run folder of each stage, and the files of the decoder as they were before."""
    root, before = tmp_path_factory.mktemp("runs"), files_of(decoder)
    for stage in STAGES:
        training.train(smoke(decoder, stage, root / stage))
    assert files_of(decoder) == before
    return root


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first_batch(recipe):
    run = training.Run(recipe)
    return run, next(run.batches(run.pool(), 0))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_but_the_adapter_trains(decoder, runs, stage):
    run = training.Run(smoke(decoder, stage, runs / stage))
    mine = {"controlnet": "controlnet.", "lora": ".lora_"}[stage]
    assert run.trained and all(mine in name for name in run.trained)
    before = {name: value.clone() for name, value in run.stage.state_dict().items()}
    run.trainer.resume(runs / stage / "checkpoints" / "step_0000004")
    moved = {name for name, value in run.stage.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved <= set(run.trained)
    assert any(name.startswith("controlnet.controlnet_down_blocks") or "lora_B" in name for name in moved)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_as_an_uninterrupted_one(decoder, runs, stage, tmp_path):
    checkpoint = str(runs / stage / "checkpoints" / "step_0000002")
    training.train(smoke(decoder, stage, tmp_path / "again"), resume=checkpoint)
    assert files_of(tmp_path / "again" / "final") == files_of(runs / stage / "final")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_continues_from_the_result_of_another(decoder, runs, stage, tmp_path):
    """Of half precision too, as results ship; training goes on in single precision."""
    ship(runs / stage / "final", tmp_path / "start")
    run = training.Run(smoke(decoder, stage, tmp_path / "more", f"init_from.{stage}={tmp_path / 'start'}"))
    assert {value.dtype for value in run.trained.values()} == {torch.float32}
    run.export()
    (kept,) = (runs / stage / "final").glob("*.safetensors")
    start, wanted = load_file(tmp_path / "more" / "final" / kept.name), load_file(kept)
    assert start.keys() == wanted.keys() and all(
        torch.equal(start[name], wanted[name].half().float()) for name in start
    )


def test_a_start_that_does_not_fit_is_refused(decoder, runs, tmp_path):
    def refused(stage, start, *overrides, words, error=MissingError):
        with pytest.raises(error, match=words):
            training.Run(smoke(decoder, stage, tmp_path / "run", f"init_from.{stage}={start}", *overrides))

    lora, controlnet = runs / "lora" / "final", runs / "controlnet" / "final"
    refused("lora", lora, "parts.lora.r=3", words=r"init_from\.lora.*lora_A", error=IncompatibleError)
    refused("lora", controlnet, words=rf"init_from\.lora: there is no {LORA_NAME}")
    refused("lora", lora / LORA_NAME, words=r"init_from\.lora: .* is a file; name the folder")
    refused("controlnet", lora, words=r"init_from\.controlnet: there is no diffusion_pytorch_model")
    (name,) = (path.name for path in controlnet.glob("*.safetensors"))
    (tmp_path / "start").mkdir()
    weights = load_file(controlnet / name)
    save_file(dict(list(weights.items())[1:]), tmp_path / "start" / name)
    refused("controlnet", tmp_path / "start", words=r"init_from\.controlnet.*missing", error=IncompatibleError)
    (tmp_path / "start" / name).write_bytes((controlnet / name).read_bytes()[:-9])
    refused("controlnet", tmp_path / "start", words=r"init_from\.controlnet: .*damaged")


@pytest.mark.parametrize("stage", STAGES)
def test_a_part_that_a_stage_does_not_start_from_is_refused(decoder, runs, stage, tmp_path):
    """A misspelt one would train from scratch without a word."""
    start = f"init_from.contrlnet={runs / stage / 'final'}"
    with pytest.raises(ConfigError, match=rf"init_from\.contrlnet: stage {stage} has no such part"):
        training.Run(smoke(decoder, stage, tmp_path, start))


def test_a_trained_tokenizer_prints_nothing(capfd):
    """stdout of `kg bench train` holds one line of JSON alone."""
    clip_tokenizer(["a red cat on the beach", "two dogs in the snow"], 600, LENGTH)
    assert capfd.readouterr() == ("", "")


def test_a_controlnet_starts_as_diffusers_own_copy_and_says_nothing(decoder):
    unet = load_decoder(decoder).unet
    # Of the heads of an added embedding `from_unet` knows only its own default.
    plain = UNet2DConditionModel.from_config(
        {**unet.config, "addition_embed_type": None, "addition_embed_type_num_heads": 64}
    )
    ours = make_controlnet(plain, {})
    theirs = ControlNetModel.from_unet(plain, conditioning_embedding_out_channels=(16, 32, 64))
    fresh = ("controlnet_cond_embedding.",)
    for name, value in theirs.state_dict().items():
        assert name.startswith(fresh) or torch.equal(value, ours.state_dict()[name]), name
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    small = make_controlnet(unet, load_recipe("smoke/controlnet").parts["controlnet"])
    assert torch.equal(small.down_blocks[1].resnets[0].conv1.weight, unet.down_blocks[1].resnets[0].conv1.weight)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([5, 900]), torch.randn(2, LENGTH, 32)
    with torch.no_grad():
        assert torch.equal(
            unet(*inputs).sample, unet(*inputs, **Steering(small, torch.ones(1, 3, 64, 64))(*inputs)).sample
        )


@pytest.mark.parametrize(("factor", "side"), [(4, 64), (8, 128), (16, 256)])
def test_a_controlnet_reads_maps_as_large_as_its_decoders_images(decoder, factor, side):
    network = make_controlnet(load_decoder(decoder).unet, {}, factor)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, LENGTH, 32)
    with torch.no_grad():
        told = Steering(network, torch.ones(1, 3, side, side))(*inputs)
    assert told["down_block_additional_residuals"][0].shape[-2:] == (16, 16)
    assert len(network.config.conditioning_embedding_out_channels) == factor.bit_length()


@pytest.mark.parametrize(("changes", "factor"), [({}, 32), ({"conditioning_embedding_out_channels": [8, 16, 32]}, 16)])
def test_a_map_that_would_not_become_as_small_as_the_latents_is_refused(decoder, changes, factor):
    with pytest.raises(ConfigError, match=rf"has \d numbers, .* give {factor.bit_length()}"):
        make_controlnet(load_decoder(decoder).unet, changes, factor)


def test_rows_of_several_conditionings_take_the_maps_in_turn(decoder):
    torch.manual_seed(0)
    network = make_controlnet(load_decoder(decoder).unet, {})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    maps = torch.rand(2, 3, 64, 64)
    noisy, timesteps, text = torch.randn(4, 4, 16, 16), torch.full((4,), 300), torch.randn(4, LENGTH, 32)
    with torch.no_grad():
        both = Steering(network, maps)(noisy, timesteps, text)["mid_block_additional_residual"]
        second = Steering(network, maps)(noisy[2:], timesteps[2:], text[2:])["mid_block_additional_residual"]
    assert torch.allclose(both[2:], second, atol=1e-5)


def test_maps_are_those_that_generate_makes(decoder, tmp_path):
    _, batch = first_batch(smoke(decoder, "controlnet", tmp_path))
    sample = draw({"captioned": 1.0}, 0, 2, 64, 8)
    wanted = make_map("canny", render(sample.truth.spec, 64).image)
    assert torch.equal(batch.maps[2], torch.from_numpy(np.array(wanted)).permute(2, 0, 1) / 255)
    assert 0 < batch.maps.mean() < 0.5


def test_results_load_in_diffusers_own_classes(decoder, runs):
    network = ControlNetModel.from_pretrained(runs / "controlnet" / "final")
    assert network.config.conditioning_embedding_out_channels == [16, 32, 64]
    assert any(weight.abs().max() > 0 for weight in network.controlnet_down_blocks.parameters())
    pipeline = StableDiffusionPipeline(
        **{part: getattr(load_decoder(decoder), part) for part in ("unet", "vae")},
        scheduler=DDIMScheduler.from_pretrained(decoder / "scheduler"),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
    )
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, LENGTH, 32)
    with torch.no_grad():
        plain = pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(runs / "lora" / "final", adapter_name="style")
        output = pipeline.unet(*inputs).sample
    run = training.Run(smoke(decoder, "lora", runs / "lora"))
    run.trainer.resume(runs / "lora" / "checkpoints" / "step_0000004")
    with torch.no_grad(), run.trainer.averaged():
        expected = run.stage.diffusion.unet(*inputs).sample
    assert torch.allclose(output, expected, atol=1e-5) and not torch.allclose(output, plain, atol=1e-5)
    assert read_lora(str(runs / "lora" / "final")).source.name == LORA_NAME


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("controlnet", "parts.controlnet.mid_blocks=3", "no such setting"),
        ("lora", "parts.lora.lora_alpha=4", "parts.lora needs r"),
        ("lora", "parts={}", "needs parts.lora"),
        ("lora", "options.nul_text=0.1", "did you mean null_text"),
    ],
)
def test_wrong_parts_are_named(decoder, tmp_path, stage, override, words):
    with pytest.raises(ConfigError, match=words):
        training.Run(smoke(decoder, stage, tmp_path, override))


def test_shipping_halves_a_file_as_it_does_a_folder(runs, tmp_path):
    source = runs / "lora" / "final" / LORA_NAME
    size = ship(source, tmp_path / "new" / "style.safetensors")
    assert size == (tmp_path / "new" / "style.safetensors").stat().st_size < source.stat().st_size
    halved = load_file(tmp_path / "new" / "style.safetensors")
    assert {name: value.half() for name, value in load_file(source).items()}.keys() == halved.keys()
    assert {value.dtype for value in halved.values()} == {torch.float16}


def test_what_ships_of_several_runs_is_the_mean_of_their_weights(runs, tmp_path):
    source = runs / "controlnet" / "final"
    (name,) = (path.name for path in source.glob("*.safetensors"))
    weights = load_file(source / name)
    shutil.copytree(source, tmp_path / "other")
    save_file({key: value + 2 for key, value in weights.items()}, tmp_path / "other" / name)
    ship(source, tmp_path / "new", others=[tmp_path / "other"])
    mean = load_file(tmp_path / "new" / name)
    assert all(torch.allclose(mean[key].float(), value + 1, atol=1e-3) for key, value in weights.items())
    save_file({"alone": torch.zeros(1)}, tmp_path / "other" / name)
    before = files_of(tmp_path)
    with pytest.raises(IncompatibleError, match="alone"):
        ship(source, tmp_path / "new", others=[tmp_path / "other"])
    assert files_of(tmp_path) == before, "what was there stays, and nothing is left beside it"


def test_wrong_arguments_of_shipping_are_one_line(runs, tmp_path):
    def fails(*args):
        done = subprocess.run([sys.executable, "-m", "kgcli.weights.ship", *args], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        return done.stderr

    source, file = runs / "lora" / "final", runs / "lora" / "final" / LORA_NAME
    (tmp_path / "empty").mkdir()
    assert fails(source).startswith("usage: ")
    assert "no weights in" in fails(tmp_path / "absent", tmp_path / "new")
    assert "no weights in" in fails(tmp_path / "empty", tmp_path / "new")
    assert "lies in what is shipped" in fails(source, source / "inner")
    assert "there is no file" in fails(file, source, tmp_path / "new.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


# ---------------------------------------------------------------- the style


def test_the_style_of_the_lora_is_shown_and_named_nowhere_else():
    for path in recipes_folder().rglob("*.yaml"):
        recipe = load_recipe(str(path))
        assert ("comic" in recipe.data.kinds) == (recipe.stage == "lora"), path
    assert not set(ADAPTER_STYLES) & set(STYLES)
    samples = [draw({"comic": 1.0}, 3, index, 64) for index in range(50)]
    assert {sample.truth.spec.style for sample in samples} == {"comic"}
    assert not any("comic" in sample.caption for sample in samples)
    combination = ("cat", "beach"), ("dog", "snow"), ("fox", "city")
    assert all(is_held_out_combination(*two, "comic") == is_held_out_combination(*two, "photo") for two in combination)


@pytest.fixture(scope="module")
def renders():
    return [render(case.spec).image for case in draw_cases("subject", 24, 5)]


def test_the_scale_of_a_style_goes_from_the_true_render_to_the_one_in_the_style(renders):
    scale = StyleScale(renders, "comic")
    fresh = [render(case.spec).image for case in draw_cases("subject", 6, 6)]
    assert scale(fresh, fresh) == pytest.approx([0.0] * 6)
    assert scale([stylize(image, "comic") for image in fresh], fresh) == pytest.approx([1.0] * 6)
    halfway = [Image.blend(image, stylize(image, "comic"), 0.5) for image in fresh]
    assert 0.2 < np.mean(scale(halfway, fresh)) < 0.8
    assert np.mean(scale([stylize(image, "watercolor") for image in fresh], fresh)) < 0.5


def shifted(image, by):
    return Image.fromarray(np.roll(np.asarray(image), by, axis=1))


@pytest.mark.parametrize("size", [SIZE // 2, SIZE])
def test_edges_are_followed_within_a_few_pixels_in_proportion_to_the_size(renders, size):
    image, blank = renders[0].resize((size, size)), Image.new("RGB", (size, size))
    wanted = make_map("canny", image)
    assert edge_f1(image, wanted) == 1.0
    assert edge_f1(shifted(image, size // 64), wanted) > 0.95 > edge_f1(shifted(image, size // 16), wanted)
    assert (edge_f1(blank, wanted), edge_f1(image, blank), edge_f1(blank, blank)) == (0.0, 0.0, 1.0)


def test_the_table_has_a_line_for_each_measure_and_a_column_for_each_method():
    rows = [Row("controlnet", "all", "edges", column, estimate([0.5, 0.7])) for column in suite.COLUMNS]
    rows += [Row("lora", "all", "style", column, estimate([1.0, 1.0])) for column in suite.COLUMNS]
    facts = {"num": 2, "seed": 0, "seconds": 1.0, "model": {"name": "m"}}
    lines = str(suite.AdapterReport(facts=facts, rows=rows)).splitlines()
    assert "ControlNet, canny (2)" in lines and "LoRA, comic (2)" in lines
    assert sum("60.0 [50.0, 70.0]" in line for line in lines) == 1 and "100.0 [34.2, 100.0]" in str(lines)
    assert max(map(len, lines[:6])) <= 120


# ---------------------------------------------------------------- the two that ship


@pytest.fixture(scope="module")
def nano():
    return engine.load(device="cpu")


def test_what_ships_is_a_few_megabytes_under_short_names():
    assert sum(path.stat().st_size for path in ADAPTERS.rglob("*") if path.is_file()) < 8e6
    assert find_adapter("nano/canny").is_dir() and find_adapter("nano/comic").is_file()
    assert find_adapter("comic.safetensors") == find_adapter("nano/comic") and find_adapter("nano/gone") is None


def answers(model, folder, num, controls):
    """Images of a few cases by column, and their true renders."""
    plan = skills_plan(folder, num, 11, {}, ("subject",))
    plan = replace(plan, items=plan.items[:num])
    write_inputs(plan)
    columns = suite.columns_of(model, find_controlnet("canny", None, model.folder), read_lora("nano/comic"))
    methods = {name: columns[controls][name] for name in ("without", "with", "true")}
    truth = [render(case_of(item).spec).image for item in plan.items]
    return suite.answer_all(plan, {controls: methods})[controls], truth


def test_the_shipped_controlnet_makes_images_follow_edges(nano, tmp_path):
    outputs, truth = answers(nano, tmp_path, 6, "controlnet")
    followed = {
        column: np.mean([scores["edges"] for scores in suite.measure_edges(truth, outputs[column])])
        for column in ("with", "without", "true")
    }
    assert followed["with"] > followed["without"] + 0.03 and followed["true"] == 1.0, followed


def test_the_shipped_lora_paints_its_style(nano, tmp_path):
    outputs, truth = answers(nano, tmp_path, 4, "lora")
    degrees = {
        column: np.mean([scores["degree"] for scores in suite.measure_style(truth, outputs[column])])
        for column in ("with", "without")
    }
    assert degrees["with"] > degrees["without"] + 0.2, degrees


def test_the_shipped_ones_need_no_paths_and_are_found_again(kg, tmp_path):
    flags = ["--controlnet", "canny=nano/cat.png:0.9", "--lora", "nano/comic:0.8", "-s", "3", "--steps", "2"]
    done = kg("generate", "a <image:nano/cat.png> in the snow", *flags, "-o", "out.png")
    assert done.code == 0, done.err
    lora, control = read_metadata(tmp_path / "out.png")["adapters"]
    assert (lora["name"], control["model"]["name"]) == ("comic.safetensors", "canny")
    assert kg("generate", "--from", "out.png", "-o", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


@pytest.mark.slow
def test_the_command_prints_figures_and_a_grid(kg, tmp_path):
    done = kg("eval", "adapters", "--num", "4", "--grid", "grid.png")
    assert done.code == 0 and suite.PROTOCOL in done.out, done.err
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 * SIZE, 6 * SIZE)


def test_maps_of_images_of_any_size_are_those_of_the_square_that_the_vae_sees():
    targets = [Image.new("RGB", size, "white") for size in ((96, 64), (64, 80))]
    samples = [Sample(target=lambda size, image=image: Target(image)) for image in targets]
    collator = MapCollator(frozenset(), 32, 0)
    assert collator(samples, [0, 1]).maps.shape == (2, 3, 32, 32)

"""Laws of what learns from captions alone: the stage that aligns images, and a text encoder beside its U-Net."""

import shutil

import pytest
import torch
from transformers import CLIPTextModel

from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.model.randomness import StepRandom
from kgcli.recipe import load_recipe
from kgcli.training import loop as training
from kgcli.training.checks.report import describe
from kgcli.weights.load import load_kosmosg
from kgcli.weights.shipped import DEFAULT_MODEL

SMALL = ["data.batch_size=4", "data.pool=4", "data.num_workers=0"]


def run_of(stage, folder, *overrides):
    recipe = load_recipe(f"smoke/{stage}", [*SMALL, *overrides], stage=stage)
    return training.Run(recipe.model_copy(update={"output_dir": str(folder), "init_from": STARTS[stage]}))


STARTS = {
    "align_images": {"model": "nano", "text": "nano/decoder"},
    "instruct": {"model": "nano", "decoder": "nano/decoder"},
    "unet": {"vae": "nano/decoder", "clip": "nano/decoder", "unet": "nano/decoder"},
}


def unet_run(folder, *overrides):
    """A run of stage unet that continues the shipped U-Net, whose sizes are those of its recipe."""
    recipe = load_recipe("nano/unet", [*SMALL, "steps=1", "data.rendered=null", "sample_every=9", *overrides])
    recipe = recipe.model_copy(update={"output_dir": str(folder), "init_from": STARTS["unet"]})
    return training.Run(recipe)


def test_images_learn_to_condition_as_the_words_for_them_do(tmp_path):
    run = run_of("align_images", tmp_path)
    batch = next(run.batches(run.pool(), 0))
    stage, random = run.stage.train(), StepRandom(0, 0, batch.numbers)
    wanted = stage.text(batch.clip_tokens).last_hidden_state
    found = stage.model.encode(batch.tokens, batch.token_mask, batch.image_mask, batch.images)
    losses = [stage(batch, random)["mse"]]
    assert torch.allclose(losses[0], (found - wanted).square().mean())
    optimizer = torch.optim.AdamW(run.trained.values(), lr=3e-4)
    for _ in range(8):
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        losses.append(stage(batch, random)["mse"])
    assert losses[-1] < 0.8 * losses[0]
    trained = {name.split(".")[1] for name in run.trained}
    assert trained == {"mllm", "resampler", "vision", "aligner"}


def test_the_result_is_a_model_that_loads(tmp_path):
    training.train(run_of("align_images", tmp_path, "steps=1").recipe)
    model = load_kosmosg(tmp_path / "final")
    assert model.aligner.decoder is None
    assert (tmp_path / "final" / "tokenizer").is_dir()


@pytest.mark.parametrize("trains", [False, True])
def test_a_text_encoder_changes_only_where_it_trains_with_its_unet(tmp_path, trains):
    run = unet_run(tmp_path, f"options.train_text_encoder={int(trains)}")
    before = {name: value.clone() for name, value in run.stage.text.state_dict().items()}
    assert any(name.startswith("text.") for name in run.trained) == trains
    training.train(run.recipe)
    after = CLIPTextModel.from_pretrained(tmp_path / "final" / "text_encoder").state_dict()
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(moved) == trains


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_instruct_can_keep_the_distance_from_words_beside_the_error_of_the_unet(tmp_path, weight):
    run = run_of("instruct", tmp_path, f"options.caption={weight}")
    batch = next(run.batches(run.pool(), 0))
    losses = run.stage(batch, StepRandom(0, 0, batch.numbers))
    assert ("clip_tokens" in batch.fields()) == ("caption" in losses) == bool(weight)
    if weight:
        wanted = run.stage.text(batch.clip_tokens).last_hidden_state
        found = run.stage.model.encode(batch.tokens, batch.token_mask, batch.image_mask, batch.images)
        assert torch.allclose(losses["caption"], weight * (found - wanted).square().mean())
        assert not any(name.startswith("text.") for name in run.trained)


@pytest.mark.parametrize(("stage", "own"), [("align_images", []), ("instruct", ["options.caption=0.5"])])
def test_a_dry_run_counts_the_text_encoder_too(tmp_path, stage, own):
    plan = describe(run_of(stage, tmp_path, *own).recipe)
    work = next(line for line in plan.lines if "work of a sample" in line)
    assert "text " in work and ("unet " in work) == (stage == "instruct")
    assert any("clip_tokens (4, 32)" in line for line in plan.lines)
    assert not plan.missing


@pytest.mark.parametrize("train", ["lora", "aligner"])
def test_the_distance_from_words_serves_what_trains(tmp_path, train):
    run = run_of("instruct", tmp_path, "options.caption=0.5", f"train={train}")
    batch = next(run.batches(run.pool(), 0))
    run.stage(batch, StepRandom(0, 0, batch.numbers))["caption"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in run.trained.values())
    assert all(p.grad is None for p in run.stage.text.parameters())


def test_a_decoder_without_a_text_encoder_is_named(tmp_path):
    decoder = shutil.copytree(DEFAULT_MODEL / "decoder", tmp_path / "decoder")
    shutil.rmtree(decoder / "text_encoder")
    recipe = load_recipe("smoke/instruct", [*SMALL, "options.caption=0.5"])
    start = {"model": "nano", "decoder": str(decoder)}
    with pytest.raises(MissingError, match=r"init_from\.decoder: .*decoder has no text_encoder"):
        training.Run(recipe.model_copy(update={"output_dir": str(tmp_path / "run"), "init_from": start}))


@pytest.mark.parametrize("stage", ["align", "align_images"])
def test_a_text_encoder_of_other_sizes_is_refused(tmp_path, stage):
    folder = shutil.copytree(DEFAULT_MODEL / "decoder", tmp_path / "decoder")
    config = CLIPTextModel.from_pretrained(folder / "text_encoder").config
    config.max_position_embeddings = 24
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    pool = [value for value in SMALL if stage != "align" or "pool" not in value]
    recipe = load_recipe(f"smoke/{stage}", pool)
    start = {"model": "nano", "text": str(folder)}
    with pytest.raises(IncompatibleError, match="24 x 128 numbers, the AlignerNet 32 x 128"):
        training.Run(recipe.model_copy(update={"output_dir": str(tmp_path / "run"), "init_from": start}))


def test_data_without_captions_are_refused(tmp_path):
    own = [
        "data.kinds={}",
        "data.pool=null",
        "data.sources=[{kind: prompts, path: recipes/example-data/prompts.jsonl}]",
    ]
    with pytest.raises(ConfigError, match="caption"):
        run_of("instruct", tmp_path, "options.caption=0.5", *own)

"""The pipeline's laws: what a picture and a conditioning depend on, and what they do not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli import engine
from kgcli.data.prompt import Prompt, encode
from kgcli.errors import IncompatibleError, UsageError
from kgcli.pipeline import MAX_BATCH
from kgcli.samplers import make_scheduler

SD15_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (12, 30), "blue")


@pytest.fixture(scope="module")
def model(tiny_model):
    return engine.load(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def zero_snr_model(tiny_model, tmp_path_factory):
    """The tiny model with a decoder that was trained from pure noise."""
    folder = tmp_path_factory.mktemp("models") / "zero_snr"
    shutil.copytree(tiny_model, folder)
    path = folder / "decoder" / "scheduler" / "scheduler_config.json"
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return engine.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pipeline(model):
    return model.pipeline


def embeds_of(pipeline, text, *images, negative=""):
    return pipeline.encode_prompt([Prompt.parse(text)], [list(images)], [negative])


def test_conditioning_is_that_of_the_model_itself(pipeline):
    prompt = Prompt.parse("a <image:x> in the snow")
    embeds, _ = pipeline.encode_prompt([prompt], [[RED]])
    sequence = encode(prompt.fragments, pipeline.tokenizer, 2)
    from kgcli.data.images import to_vision_pixels

    with torch.no_grad():
        expected = pipeline.model.encode(
            torch.tensor([sequence.token_ids]),
            torch.ones(1, len(sequence.token_ids), dtype=torch.bool),
            torch.tensor([sequence.image_mask]),
            torch.from_numpy(to_vision_pixels(RED, 16))[None],
        )
    torch.testing.assert_close(embeds, expected)


def test_without_a_negative_prompt_the_start_token_is_guided_away_from(pipeline):
    with torch.no_grad():
        torch.testing.assert_close(embeds_of(pipeline, "a cat")[1], pipeline.model.encode_null())


def test_rows_of_a_batch_are_those_of_single_prompts(pipeline):
    texts = ["a cat", "a <image:x> in the snow and a <image:y>", "<image:x>"]
    images = [[], [RED, BLUE], [BLUE]]
    negatives = ["", "low quality", "a car"]
    together = pipeline.encode_prompt([Prompt.parse(text) for text in texts], images, negatives)
    for row, (text, pictures, negative) in enumerate(zip(texts, images, negatives, strict=True)):
        alone = embeds_of(pipeline, text, *pictures, negative=negative)
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[row], single[0], rtol=1e-4, atol=1e-5)


def test_a_weight_scales_its_own_image_only(pipeline):
    plain, one, zero = (
        embeds_of(pipeline, f"a <image:x{option}>", RED)[0] for option in ("", "|weight=1", "|weight=0")
    )
    assert torch.equal(plain, one) and not torch.equal(plain, zero)
    assert torch.equal(zero, embeds_of(pipeline, "a <image:y|weight=0>", BLUE)[0])


def test_fit_says_how_a_picture_becomes_square(pipeline):
    padded, plain, cropped = (embeds_of(pipeline, f"<image:x{o}>", BLUE)[0] for o in ("|fit=pad", "", "|fit=crop"))
    assert torch.equal(padded, plain) and not torch.equal(padded, cropped)


def test_a_picture_that_occurs_often_is_seen_once(pipeline, monkeypatch):
    seen = []
    forward = pipeline.model.vision.forward
    monkeypatch.setattr(pipeline.model.vision, "forward", lambda images: seen.append(len(images)) or forward(images))
    pipeline.encode_prompt([Prompt.parse("<image:x><image:x>"), Prompt.parse("<image:x>")], [[RED, RED], [RED]])
    assert seen == [1]


def test_pictures_must_match_the_prompts_images(pipeline):
    with pytest.raises(UsageError, match="1 image"):
        pipeline.encode_prompt([Prompt.parse("a <image:x>")], [[]])


def test_a_long_batch_goes_in_pieces_and_keeps_its_order(pipeline):
    seeds = list(range(MAX_BATCH + 2))
    embeds, _ = embeds_of(pipeline, "a cat")
    pictures = pipeline(embeds.expand(len(seeds), -1, -1), seeds=seeds, num_inference_steps=1)
    alone = pipeline(embeds, seeds=[seeds[-1]], num_inference_steps=1)
    assert len(pictures) == len(seeds)
    difference = np.abs(np.asarray(pictures[-1], int) - np.asarray(alone[0], int))
    assert difference.max() <= 1  # a batch sums in another order


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1), (0.5, 1), (3.0, 2)])
def test_null_rows_are_computed_only_where_they_guide(pipeline, monkeypatch, scale, rows):
    seen = []
    unet = pipeline.decoder.unet
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda sample, *a, **k: seen.append(len(sample)) or forward(sample, *a, **k))
    embeds, _ = embeds_of(pipeline, "a cat")
    pipeline(embeds, seeds=[1], guidance_scale=scale, num_inference_steps=1)
    assert set(seen) == {rows}


def test_a_negative_prompt_changes_the_picture(model):
    first, second = (model.generate("a cat", seed=1, negative_prompt=text)[0] for text in ("", "low quality"))
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++", "euler", "unipc", "lcm"])
def test_every_scheduler_draws_the_same_picture_twice(model, name):
    first, second = (model.generate("a cat", seed=3, scheduler=name, num_steps=4)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_published_solver_ends_at_its_own_noise_level():
    scheduler = make_scheduler("dpm++", SD15_SCHEDULER)
    scheduler.set_timesteps(10)
    assert scheduler.config.timestep_spacing == "linspace" and scheduler.config.algorithm_type == "dpmsolver++"
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.0292, abs=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "unipc", "lcm"])
def test_the_decoders_own_noise_schedule_is_honoured(name):
    config = {
        **SD15_SCHEDULER,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(4)
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr
    assert int(scheduler.timesteps[0]) == 999


def test_a_scheduler_that_cannot_start_from_pure_noise_is_refused():
    with pytest.raises(IncompatibleError, match="pndm"):
        make_scheduler("pndm", {**SD15_SCHEDULER, "rescale_betas_zero_snr": True})


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "unipc", "lcm"])
def test_a_zero_snr_decoder_draws_finite_pictures(zero_snr_model, name):
    picture = zero_snr_model.generate("a cat", seed=0, scheduler=name, num_steps=5, guidance_rescale=0.7)[0]
    assert np.asarray(picture).std() > 0


def test_size_and_unknown_settings_are_checked(model):
    assert model.generate("a cat", seed=0, width=24, height=16)[0].size == (24, 16)
    with pytest.raises(UsageError, match="multiple of 8"):
        model.generate("a cat", width=20)
    with pytest.raises(UsageError, match="unknown setting"):
        model.generate("a cat", wdith=16)


def test_edit_and_generate_share_the_engine(model, cat):
    assert (
        model.edit(str(cat), "add a hat", seed=1)[0].tobytes()
        == engine.edit(model, str(cat), "add a hat", seed=1).tobytes()
    )

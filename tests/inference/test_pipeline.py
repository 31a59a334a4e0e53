"""The pipeline's laws: what an image and a conditioning depend on, and what they do not."""

from __future__ import annotations

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli import engine
from kgcli.config import MAX_BATCH, SamplingConfig
from kgcli.data.prompt import Prompt, encode
from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.inference.denoise import make_scheduler, seeded
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.weights.folder import open_model

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
    for row, (text, given, negative) in enumerate(zip(texts, images, negatives, strict=True)):
        alone = embeds_of(pipeline, text, *given, negative=negative)
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[row], single[0], rtol=1e-4, atol=1e-5)


def test_a_long_batch_goes_in_pieces_and_keeps_its_order(pipeline):
    seeds = list(range(MAX_BATCH + 2))
    embeds, _ = embeds_of(pipeline, "a cat")
    images = pipeline.sample(
        embeds.expand(len(seeds), -1, -1), generators=seeded(seeds), sampling=SamplingConfig(num_inference_steps=1)
    )
    alone = pipeline.sample(embeds, generators=seeded(seeds[-1:]), sampling=SamplingConfig(num_inference_steps=1))
    assert len(images) == len(seeds)
    difference = np.abs(np.asarray(images[-1], int) - np.asarray(alone[0], int))
    assert difference.max() <= 1  # a batch sums in another order


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1), (0.5, 1), (3.0, 2)])
def test_null_rows_are_computed_only_where_they_guide(pipeline, monkeypatch, scale, rows):
    seen = []
    unet = pipeline.decoder.unet
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda sample, *a, **k: seen.append(len(sample)) or forward(sample, *a, **k))
    embeds, _ = embeds_of(pipeline, "a cat")
    sampling = SamplingConfig(guidance_scale=scale, num_inference_steps=1)
    pipeline.sample(embeds, generators=seeded([1]), sampling=sampling)
    assert set(seen) == {rows}


def test_a_negative_prompt_changes_the_image(model):
    first, second = (model.generate("a cat", seed=1, negative_prompt=text)[0] for text in ("", "low quality"))
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++", "euler", "unipc", "lcm"])
def test_every_scheduler_is_deterministic(model, name):
    first, second = (model.generate("a cat", seed=3, scheduler=name, num_steps=4)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++", "euler", "unipc", "lcm"])
def test_schedulers_take_their_timesteps_from_main_memory_and_in_order(pipeline, monkeypatch, name):
    """Without a GPU: what `step` is given, and that an image is as without our wrapper."""
    kind, seen = type(make_scheduler(name, pipeline.decoder.scheduler_config)), []
    step = kind.step

    def noted(self, model_output, timestep, sample, **options):
        seen.append((timestep.device.type, self.timesteps.device.type, float(timestep)))
        return step(self, model_output, timestep, sample, **options)

    noted.__signature__ = inspect.signature(step)
    monkeypatch.setattr(kind, "step", noted)
    embeds, _ = embeds_of(pipeline, "a cat")
    sampling = SamplingConfig(scheduler=name, num_inference_steps=4)
    first = pipeline.sample(embeds, generators=seeded([1]), sampling=sampling)[0]
    passed = [timestep for _, _, timestep in seen]
    assert {device for *devices, _ in seen for device in devices} == {"cpu"}
    assert passed == sorted(passed, reverse=True) and len(passed) >= 4
    monkeypatch.setattr("kgcli.inference.denoise._HostTimesteps", lambda scheduler: scheduler.step)
    assert first.tobytes() == pipeline.sample(embeds, generators=seeded([1]), sampling=sampling)[0].tobytes()


def test_the_published_solver_ends_at_its_own_noise_level():
    scheduler = make_scheduler("dpm++", SD15_SCHEDULER)
    scheduler.set_timesteps(10)
    assert scheduler.config.timestep_spacing == "linspace" and scheduler.config.algorithm_type == "dpmsolver++"
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.0292, abs=1e-4)


def test_the_protocols_samplers_are_the_same_for_every_decoder():
    other = {**SD15_SCHEDULER, "final_sigmas_type": "zero", "timestep_spacing": "trailing", "steps_offset": 0}
    scheduler = make_scheduler("dpm++-sigma-min", other)
    scheduler.set_timesteps(100)
    assert scheduler.config.timestep_spacing == "linspace" and scheduler.config.solver_order == 2
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.0292, abs=1e-4)
    followed = make_scheduler("dpm++", other)
    followed.set_timesteps(100)
    assert float(followed.sigmas[-1]) == 0.0
    leading = make_scheduler("ddim-leading", {**other, "set_alpha_to_one": True}).config
    assert (leading.timestep_spacing, leading.steps_offset, leading.set_alpha_to_one) == ("leading", 1, False)


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
def test_a_zero_snr_decoder_generates_finite_images(zero_snr_model, name):
    image = zero_snr_model.generate("a cat", seed=0, scheduler=name, num_steps=5, guidance_rescale=0.7)[0]
    assert np.asarray(image).std() > 0


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


def test_the_pipeline_has_the_manners_of_diffusers(tiny_model, pipeline):
    mine = KosmosGPipeline.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    assert mine.to("cpu", torch.float32) is mine and mine.dtype == torch.float32
    generator = torch.Generator().manual_seed(3)
    made = mine("a <image>", RED, negative_prompt="a car", num_images_per_prompt=2, generator=generator)
    assert [image.size for image in made.images] == [(16, 16)] * 2
    assert made.images[0].tobytes() != made.images[1].tobytes()
    embeds, negative = mine.encode_prompt("a <image>", RED, "a car")
    again = mine(prompt_embeds=embeds, negative_prompt_embeds=negative, generator=seeded([3]))
    assert again.images[0].tobytes() == made.images[0].tobytes()
    with pytest.raises(UsageError, match="either prompt or prompt_embeds"):
        mine()


def test_each_row_of_embeds_gives_as_many_images_as_were_asked_for(pipeline):
    embeds, negative = pipeline.encode_prompt(["a cat", "a car"])
    made = pipeline(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        num_images_per_prompt=2,
        generator=seeded([1, 2, 1, 2]),
        num_inference_steps=1,
    ).images
    asked = pipeline(
        ["a cat", "a car"], num_images_per_prompt=2, generator=seeded([1, 2, 1, 2]), num_inference_steps=1
    ).images
    assert [image.tobytes() for image in made] == [image.tobytes() for image in asked] and len(made) == 4


@pytest.mark.parametrize("more", [{"images": RED}, {"negative_prompt": "a car"}, {"prompt": "a cat"}])
def test_what_embeds_already_hold_is_refused_beside_them(pipeline, more):
    embeds, _ = pipeline.encode_prompt("a cat")
    with pytest.raises(UsageError, match="prompt"):
        pipeline(prompt_embeds=embeds, **more)
    with pytest.raises(UsageError, match="prompt_embeds"):
        pipeline("a cat", negative_prompt_embeds=embeds)
    with pytest.raises(UsageError, match="at least 1"):
        pipeline(prompt_embeds=embeds, num_images_per_prompt=0)


def test_an_opened_folder_takes_another_decoder(tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model / "decoder", other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    folder = open_model(str(tiny_model))
    assert engine.load(folder, decoder=str(other), device="cpu").folder.decoder == str(other)
    pipeline = KosmosGPipeline.from_pretrained(folder, decoder=other)
    assert pipeline.decoder.scheduler_config["prediction_type"] == "v_prediction"
    with pytest.raises(MissingError, match="no decoder"):
        engine.load(folder, decoder=str(tmp_path / "missing"), device="cpu")


def test_half_precision_encodes_and_generates(tiny_model, cat):
    half = engine.load(str(tiny_model), device="cpu", dtype="bfloat16")
    assert half.generate(f"a <image:{cat}>", seed=0)[0].size == (16, 16)
    assert half.pipeline.dtype == torch.bfloat16


# Without an accelerator the device that is lent to is the CPU itself; single layers cannot be lent to that.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mode", ["model", "none", *(["sequential"] if DEVICE == "cuda" else [])])
def test_offload_gives_the_same_image(tiny_model, mode):
    images = []
    for offload in ("none", mode):
        spared = KosmosGPipeline.from_pretrained(tiny_model, device=DEVICE)
        spared.enable_offload(offload, DEVICE)
        images.append(spared.sample(*embeds_of(spared, "a <image:x>", RED), generators=seeded([1]))[0])
    assert np.abs(np.asarray(images[0], int) - np.asarray(images[1], int)).max() <= 1


def test_parts_that_are_lent_in_turn_read_the_same(tiny_model, pipeline):
    spared = KosmosGPipeline.from_pretrained(tiny_model)
    spared.encoder.set_offload("sequential", torch.device(DEVICE))
    for one, other in zip(embeds_of(spared, "a <image:x>", RED), embeds_of(pipeline, "a <image:x>", RED), strict=True):
        torch.testing.assert_close(one.cpu(), other)
    with pytest.raises(UsageError, match="none, model, sequential"):
        pipeline.enable_offload("disk")


def test_large_images_are_decoded_in_tiles(pipeline, monkeypatch):
    monkeypatch.setattr("kgcli.inference.denoise.TILED_PIXELS", 16 * 16)
    tiled = []
    vae, decode = pipeline.decoder.vae, pipeline.decoder.vae.tiled_decode
    monkeypatch.setattr(vae, "tiled_decode", lambda *args, **options: tiled.append(1) or decode(*args, **options))
    embeds, _ = embeds_of(pipeline, "a cat")
    pipeline.sample(embeds, generators=seeded([1]), sampling=SamplingConfig(num_inference_steps=1))
    assert not tiled
    pipeline.sample(embeds, generators=seeded([1]), sampling=SamplingConfig(num_inference_steps=1, width=32, height=32))
    assert tiled and not vae.use_tiling

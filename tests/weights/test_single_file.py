"""Single-file decoders: settings in the file apply, and unused tensors are reported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from ldm_names import write_single_file
from PIL import Image
from safetensors.torch import load_file, save_file

from kgcli import engine
from kgcli.errors import IncompatibleError, NotFiniteError
from kgcli.weights.decoder import load_decoder
from kgcli.weights.single_file_header import check_inputs

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def tensors(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "base.safetensors"
    write_single_file(load_decoder(tiny_model / "decoder"), path)
    return load_file(path)


@pytest.fixture
def load(tiny_model, tmp_path):
    """The decoder of a file with these tensors."""

    def call(tensors, metadata=None, name="file.safetensors"):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata)
        return load_decoder(tmp_path / name, sizes=tiny_model / "decoder")

    return call


def ours(caplog):
    """Our own notes; diffusers has its own."""
    return [record for record in caplog.records if record.name.startswith("kgcli")]


@pytest.mark.parametrize(
    ("more", "metadata", "expected"),
    [
        ({}, {}, {}),
        ({"v_pred": torch.zeros(0)}, {}, {"prediction_type": "v_prediction"}),
        ({f"{UNET}v_pred": torch.zeros(0)}, {}, {"prediction_type": "v_prediction"}),
        ({}, {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ({}, {"modelspec.prediction_type": "Epsilon"}, {"prediction_type": "epsilon"}),
        (
            {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
            {"modelspec.prediction_type": "epsilon"},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ),
    ],
)
def test_markers_and_header_set_the_scheduler(load, tensors, tiny_model, caplog, more, metadata, expected):
    plain = load_decoder(tiny_model / "decoder").scheduler_config
    loaded = load(tensors | more, metadata or None)
    assert loaded.scheduler_config == {**plain, **expected}
    assert loaded.noise_scheduler.config.prediction_type == expected.get("prediction_type", "epsilon")
    assert not ours(caplog)


def test_a_v_prediction_file_generates_what_its_folder_does(tensors, tiny_model, tmp_path):
    folder, file = tmp_path / "decoder", tmp_path / "v.SafeTensors"
    shutil.copytree(tiny_model / "decoder", folder)
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "prediction_type": "v_prediction"}))
    save_file(tensors | {"v_pred": torch.zeros(0)}, file)
    images = [
        np.asarray(engine.load(str(tiny_model), decoder=str(source), device="cpu").generate("a cat", seed=1)[0])
        for source in (folder, file, tiny_model / "decoder")
    ]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied(load, tensors, tiny_model, suffix, caplog):
    stored, expected = dict(tensors), dict(tensors)
    for row, key in enumerate(
        k for k in tensors if k.startswith(UNET) and k.endswith(".weight") and tensors[k].ndim == 2
    ):
        # One scale for the whole weight, or one for each output.
        scale = tensors[key].abs().max() / 448 if row % 2 else tensors[key].abs().amax(1) / 448
        stored[key] = (tensors[key] / scale.reshape(-1, *[1] * (row % 2 == 0))).to(torch.float8_e4m3fn)
        stored[f"{key.removesuffix('weight')}{suffix}"] = scale
        expected[key] = stored[key].float() * scale.reshape(-1, *[1] * (row % 2 == 0))
    found = load(stored | {"scaled_fp8": torch.zeros(2)}).state_dict()
    for name, tensor in load(expected).state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert not ours(caplog)


def test_tensors_without_a_place_are_counted_and_named(load, tensors, caplog):
    load(tensors | {f"{UNET}label_emb.0.0.weight": torch.ones(2, 2), "cond_stage_model.x": torch.ones(1)})
    assert "file.safetensors: 1 U-Net and VAE tensors are not used by this decoder" in caplog.text
    assert "label_emb.0.0.weight" in caplog.text
    caplog.clear()
    load(tensors | {"first_stage_model.loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)})
    assert not ours(caplog)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{UNET}input_blocks.0.0.bias_scale": torch.ones(1)}, "unsupported quantisation"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}, "unsupported quantisation"),
        ({f"{UNET}nothing.weight_scale": torch.ones(1)}, "unsupported quantisation"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}, "is an inpainting checkpoint"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 8, 3, 3)}, "InstructPix2Pix"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 7, 3, 3)}, "for latents of 4 channels and further inputs"),
        ({f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3)}, "predicts 4 channels for latents of 3"),
        ({"edm_mean": torch.zeros(4)}, "EDM"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(load, tensors, change, words):
    with pytest.raises(IncompatibleError) as caught:
        load(tensors | change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kept", "metadata", "words"),
    [
        ("first_stage_model.", {}, "decoder's unet is not in odd.safetensors"),
        (UNET, {}, "decoder's vae is not in odd.safetensors"),
        ("nothing", {}, "decoder's unet is not in odd.safetensors"),
        ("", {"modelspec.prediction_type": "flow"}, "prediction_type 'flow'"),
    ],
)
def test_unfit_files_are_found_before_torch(kg, tensors, tiny_model, tmp_path, without_engine, kept, metadata, words):
    chosen = {key: tensor for key, tensor in tensors.items() if key.startswith(kept)}
    save_file(chosen, tmp_path / "odd.safetensors", metadata or None)
    done = kg("generate", "a cat", "--model", tiny_model, "--decoder", "odd.safetensors")
    assert done.code == 4 and words in done.err and done.err.count("\n") == 1, done.err


@pytest.mark.parametrize("left_out", [(), ("out_channels",)])  # 4, as diffusers reads it
def test_an_inpainting_folder_is_refused_too(kg, tiny_model, tmp_path, without_engine, left_out):
    shutil.copytree(tiny_model / "decoder", tmp_path / "inpaint")
    config = tmp_path / "inpaint" / "unet" / "config.json"
    values = {**json.loads(config.read_text()), "in_channels": 9}
    config.write_text(json.dumps({name: value for name, value in values.items() if name not in left_out}))
    done = kg("generate", "a cat", "--model", tiny_model, "--decoder", "inpaint")
    assert done.code == 4 and "inpaint is an inpainting checkpoint" in done.err


@pytest.mark.parametrize("channels", [5, 8, 9, 16])
def test_latents_of_any_number_of_channels_are_no_further_inputs(channels):
    check_inputs("decoder", channels, channels)
    check_inputs("decoder", channels, None)  # not known yet


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_no_numbers_is_not_kept(kg, tensors, tiny_model, tmp_path, value):
    key = "first_stage_model.decoder.conv_out.bias"  # infinity there would be clamped to white
    save_file(tensors | {key: torch.full_like(tensors[key], value)}, tmp_path / "odd.safetensors")
    done = kg("generate", "a cat", "--model", tiny_model, "--decoder", "odd.safetensors", "-s", "1", "-o", "out.png")
    assert done.code == 1 and "NaN or infinity" in done.err and "--dtype float32" in done.err, done.err
    assert not (tmp_path / "out.png").exists()


def test_methods_and_reconstructions_refuse_them_too(tiny_model, tmp_path):
    from kgcli.evaluation.baselines.world import Reconstruction
    from kgcli.model.finite import finite_images

    model = engine.load(str(tiny_model), device="cpu")
    vae = model.pipeline.decoder.vae
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("nan"))

    class Copies:
        def draw(self, items, data, folder):
            return [Image.new("RGB", (16, 16)) for _ in items]

    with pytest.raises(NotFiniteError):
        Reconstruction.of(Copies(), model).draw([None], tmp_path, tmp_path)
    with pytest.raises(NotFiniteError), finite_images(vae), torch.no_grad():
        vae.decode(torch.zeros(1, 4, 8, 8))
    assert not vae.decoder._forward_hooks

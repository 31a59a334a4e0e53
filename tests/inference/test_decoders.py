"""Inputs of `--decoder`: single files, half precision variants, Hub ids from the cache, and refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ldm_names import write_single_file
from safetensors.torch import load_file, save_file

from kgcli import engine
from kgcli.errors import IncompatibleError
from kgcli.inference.metadata import read_metadata
from kgcli.weights.decoder import load_decoder
from kgcli.weights.folder import open_model
from kgcli.weights.shipped import DEFAULT_MODEL, SD15_SIZES

COMMIT = "0" * 40
quiet_hub = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers' own


@pytest.fixture
def single_file(tiny_model, tmp_path):
    """The tiny decoder as one file, a text encoder's weight in it as in any checkpoint."""
    path = tmp_path / "tiny.safetensors"
    write_single_file(load_decoder(tiny_model / "decoder"), path, **{"cond_stage_model.x": torch.ones(1)})
    return path


@pytest.fixture
def hub(tiny_model, tmp_path, monkeypatch):
    """A cache of the Hub with one repository: a decoder whose weights are stored in half precision only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_model / "decoder", folder)
    for part in ("unet", "vae"):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        save_file(
            {name: tensor.half() for name, tensor in load_file(path).items()}, path.with_suffix(".fp16.safetensors")
        )
        path.unlink()
        path.with_suffix(".fp16.safetensors").rename(folder / part / "diffusion_pytorch_model.fp16.safetensors")


def test_a_single_file_is_the_folder_it_was_made_of(single_file, tiny_model):
    whole = load_decoder(tiny_model / "decoder")
    loaded = load_decoder(single_file, sizes=tiny_model / "decoder")
    assert loaded.scheduler_config == whole.scheduler_config
    for name, tensor in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_single_file_gives_the_same_image(kg, tiny_model, single_file, tmp_path):
    common = ["generate", "a cat", "--model", tiny_model, "-s", "1", "--offline"]
    done = kg(*common, "--decoder", "tiny.safetensors", "-o", "a.png")
    assert (done.code, done.err) == (0, ""), done.err
    kg(*common, "-o", "b.png")
    first, second = (read_metadata(tmp_path / name)["decoder"] for name in ("a.png", "b.png"))
    assert first["name"] == "tiny.safetensors" and len(first["sha256"]) == 64 and first != second
    from PIL import Image

    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()


def test_a_file_without_a_part_or_of_other_sizes_is_named(single_file, tiny_model, tmp_path):
    weights = load_file(single_file)
    save_file({k: v for k, v in weights.items() if "middle_block" not in k}, tmp_path / "cut.safetensors")
    with pytest.raises(IncompatibleError, match="decoder's unet .*weights are missing"):
        load_decoder(tmp_path / "cut.safetensors", sizes=tiny_model / "decoder")
    save_file({k: v for k, v in weights.items() if "first_stage" not in k}, tmp_path / "no_vae.safetensors")
    with pytest.raises(IncompatibleError, match="decoder's vae"):
        load_decoder(tmp_path / "no_vae.safetensors", sizes=tiny_model / "decoder")
    with pytest.raises(IncompatibleError, match="decoder's unet"):
        load_decoder(single_file, sizes=DEFAULT_MODEL / "decoder")


@pytest.mark.parametrize(
    ("decoder", "code", "words"),
    [
        ("wide.safetensors", 4, "width 768, this model makes 16"),
        ("wide", 4, "width 768, this model makes 16"),
        ("cut.safetensors", 3, "damaged"),
        ("old.ckpt", 3, "convert it to one first"),
        ("gone.safetensors", 3, "no decoder gone.safetensors"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_found_before_torch(
    kg, tiny_model, tmp_path, without_engine, decoder, code, words
):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.ones(2, 768)}, tmp_path / "wide.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wide.safetensors").read_bytes()[:-9])
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02")
    shutil.copytree(tiny_model / "decoder", tmp_path / "wide")
    config = tmp_path / "wide" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 768}))
    done = kg("generate", "a cat", "--model", tiny_model, "--decoder", decoder)
    assert done.code == code and words in done.err, done.err


@quiet_hub
def test_hub_ids_come_from_the_cache_and_old_ones_are_followed(hub, tiny_model, caplog):
    for dtype in ("float16", "float32"):
        with caplog.at_level("WARNING", logger="kgcli"):
            model = engine.load(
                str(tiny_model), decoder="runwayml/stable-diffusion-v1-5", device="cpu", dtype=dtype, offline=True
            )
        assert model.pipeline.decoder.unet.dtype == getattr(torch, dtype)
    assert "has moved: using stable-diffusion-v1-5/stable-diffusion-v1-5" in caplog.text
    assert model.folder.decoder_sha256 == ""
    assert model.generate("a cat", seed=0)[0].size == (16, 16)


@quiet_hub
def test_a_variant_can_be_asked_for(hub, tiny_model):
    from kgcli import KosmosGPipeline

    source = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    options = {"decoder": source, "torch_dtype": torch.bfloat16, "local_files_only": True}
    assert KosmosGPipeline.from_pretrained(tiny_model, variant="fp16", **options).dtype == torch.bfloat16
    from kgcli.errors import MissingError

    with pytest.raises(MissingError, match="the decoder's unet"):
        KosmosGPipeline.from_pretrained(tiny_model, variant="fp32", **options)


def test_the_sizes_that_ship_are_those_of_stable_diffusion(tiny_model, single_file):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15_SIZES / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SD15_SIZES / "vae"))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert open_model(str(tiny_model), str(single_file)).decoder_sizes == tiny_model / "decoder"
    assert open_model(str(tiny_model)).decoder_sizes is None

"""LoRA files and ControlNets of `kg generate`: how they are written, what they do, and how they are found again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from kgcli import engine
from kgcli.errors import IncompatibleError, UsageError
from kgcli.inference.adapters.control_maps import ADE20K_COLOURS, fit_to, make_map
from kgcli.inference.adapters.named import CONTROLNETS, find_controlnet, find_maker, read_adapters
from kgcli.inference.denoise import seeded
from kgcli.inference.metadata import read_metadata
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.weights.decoder import load_decoder
from kgcli.weights.folder import open_model

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def scatter(parameters, seed, size=0.5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def lora_weights(decoder, seed):
    """A peft LoRA of this U-Net, moved away from its start."""
    unet = load_decoder(decoder).unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights="gaussian"))
    scatter([p for name, p in unet.named_parameters() if "lora_" in name], seed)
    return get_peft_model_state_dict(unet)


def write_diffusers(path, weights):
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    StableDiffusionPipeline.save_lora_weights(
        path.parent, unet_lora_layers=convert_state_dict_to_diffusers(weights), weight_name=path.name
    )


def write_kohya(path, weights, text_encoder=False):
    """The names of kohya's sd-scripts: `lora_unet_..._to_q.lora_down.weight`, with an alpha for each."""
    named = {}
    for key, weight in weights.items():
        layer, _, kind = key.removesuffix(".weight").rpartition(".")
        name = "lora_unet_" + layer.replace(".", "_")
        named[f"{name}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = weight.contiguous()
        named[f"{name}.alpha"] = torch.tensor(2.0)  # of rank 2: a scale of 1, as in a file without it
    if text_encoder:
        name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        named |= {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
        named[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(named, path)


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """A folder with two LoRA files, the first in both formats, and a ControlNet."""
    folder = tmp_path_factory.mktemp("adapters")
    weights = lora_weights(tiny_model / "decoder", 1)
    write_diffusers(folder / "style.safetensors", weights)
    write_kohya(folder / "kohya.safetensors", weights)
    write_kohya(folder / "both.safetensors", lora_weights(tiny_model / "decoder", 2), text_encoder=True)
    unet = load_decoder(tiny_model / "decoder").unet
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    scatter([*network.controlnet_down_blocks.parameters(), *network.controlnet_mid_block.parameters()], 3)
    scatter(network.controlnet_cond_embedding.parameters(), 4)
    network.save_pretrained(folder / "canny")
    photo = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(photo).rectangle((10, 5, 30, 20), fill="black")
    photo.save(folder / "photo.png")
    make_map("canny", fit_to(photo, (16, 16))).save(folder / "map.png")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model):
    return engine.load(str(tiny_model), device="cpu")


def generate(model, **options):
    return np.asarray(model.generate("a cat", seed=1, **options)[0], int)


# ---------------------------------------------------------------- LoRA


def test_both_formats_are_the_same_lora(model, files):
    plain, diffusers, kohya = (
        generate(model, loras=names) for names in ([], [f"{files}/style.safetensors"], [f"{files}/kohya.safetensors"])
    )
    assert not np.array_equal(plain, diffusers)
    assert np.abs(diffusers - kohya).max() <= 1
    assert np.array_equal(plain, generate(model)), "a LoRA acts on its own images only"


def test_scales_and_several_loras(model, files):
    one, other = f"{files}/style.safetensors", f"{files}/both.safetensors"
    assert np.array_equal(generate(model), generate(model, loras=[f"{one}:0"]))
    first, half, both = (generate(model, loras=names) for names in ([one], [f"{one}:0.5"], [one, other]))
    assert len({image.tobytes() for image in (first, half, both)}) == 3
    assert np.abs(both - generate(model, loras=[other, one])).max() <= 1
    assert np.array_equal(first, generate(model, loras=[one, f"{other}:0"]))


def test_the_text_encoders_part_is_left_out_with_a_note(model, files, caplog):
    fresh = engine.load(model.folder, device="cpu")
    with caplog.at_level("WARNING", logger="kgcli"):
        generate(fresh, loras=[f"{files}/both.safetensors"])
    assert "both.safetensors also changes the text encoder" in caplog.text


def test_a_lora_of_another_decoder_is_named(model, files, tmp_path):
    weights = load_file(files / "style.safetensors")
    save_file({key: torch.ones(3, 3) for key in weights}, tmp_path / "odd.safetensors")
    with pytest.raises(IncompatibleError, match="odd.safetensors does not fit this decoder"):
        generate(model, loras=[f"{tmp_path}/odd.safetensors"])
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.ones(2, 4)}, tmp_path / "text.safetensors")
    with pytest.raises(IncompatibleError, match="only changes the text encoder"):
        generate(model, loras=[f"{tmp_path}/text.safetensors"])


def test_loras_are_put_on_the_diffusers_pipeline(model, files):
    """The same pipeline used through diffusers gives the same image."""
    pipeline = KosmosGPipeline.from_pretrained(model.folder)
    pipeline.sd.load_lora_weights(files, weight_name="style.safetensors", adapter_name="style")
    pipeline.sd.set_adapters(["style"], [0.7])
    expected = pipeline.sample(*pipeline.encode_prompt("a cat"), generators=seeded([1]))[0]
    assert np.array_equal(np.asarray(expected), generate(model, loras=[f"{files}/style.safetensors:0.7"]))


# ---------------------------------------------------------------- ControlNet


def test_controls_are_those_of_diffusers_own_pipeline(model, files):
    options = {"num_steps": 3, "guidance_rescale": 0.0}
    control = {"controls": [f"canny={files}/photo.png:0.8"], "controlnet_models": [f"canny={files}/canny"]}
    ours = generate(model, **control, **options)
    pipeline = model.pipeline.make_pipeline(
        StableDiffusionControlNetPipeline, controlnet=ControlNetModel.from_pretrained(files / "canny")
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds, negative = model.pipeline.encode_prompt("a cat")
    expected = pipeline(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        image=Image.open(files / "map.png"),
        controlnet_conditioning_scale=0.8,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=seeded([1])[0],
    ).images[0]
    assert np.abs(np.asarray(expected, int) - ours).max() <= 1
    assert not np.array_equal(ours, generate(model, **options)), "a ControlNet acts on its own images only"


def test_a_ready_map_is_the_map_that_would_be_made(model, files):
    network = {"controlnet_models": [f"canny={files}/canny"]}
    made = generate(model, controls=[f"canny={files}/photo.png"], **network)
    assert np.array_equal(made, generate(model, controls=[f"canny=@{files}/map.png"], **network))
    assert not np.array_equal(made, generate(model, controls=[f"canny=@{files}/photo.png"], **network))
    posed = {"controls": [f"pose=@{files}/map.png"], "controlnet_models": [f"pose={files}/canny"]}
    assert np.array_equal(made, generate(model, **posed))


def test_maps_of_the_latest_images_alone_are_kept(model, files):
    """A server that is given ever new images does not grow."""
    from kgcli.data.images import ImageFile
    from kgcli.inference.adapters.attach import KEPT_MAPS
    from kgcli.inference.adapters.named import Control, Source

    def control(number):
        image = Image.new("RGB", (16, 16), (number, 0, 0))
        file = ImageFile(Path("x.png"), "x.png", str(number), image)
        return Control(kind="canny", source=Source(location="", name=""), image=file, ready=True)

    for number in range(2 * KEPT_MAPS):
        assert model.attachments.control_map(control(number), (16, 16)).getpixel((0, 0)) == (number, 0, 0)
    assert len(model.attachments._maps) == KEPT_MAPS


def test_several_controls_and_a_guided_rescale(model, files):
    networks = {"controlnet_models": [f"canny={files}/canny", f"pose={files}/canny"]}
    one = generate(model, controls=[f"canny={files}/photo.png"], controlnet_models=[f"canny={files}/canny"])
    two = [f"canny={files}/photo.png", f"pose=@{files}/photo.png:0.5"]
    assert not np.array_equal(one, generate(model, controls=two, **networks))
    assert np.array_equal(one, generate(model, controls=[two[0], f"pose=@{files}/photo.png:0"], **networks))
    rescaled, plain = (
        generate(model, controls=two, guidance_scale=50.0, guidance_rescale=rescale, **networks)
        for rescale in (1.0, 0.0)
    )
    assert not np.array_equal(rescaled, plain)


def test_a_controlnet_of_another_decoder_is_refused(model, files, tiny_model, tmp_path):
    unet = load_decoder(tiny_model / "decoder").unet
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "sd")  # reads maps eight times as wide as latents
    with pytest.raises(IncompatibleError, match="8 times as wide"):
        generate(model, controls=[f"canny={files}/photo.png"], controlnet_models=[f"canny={tmp_path}/sd"])
    config = json.loads((tmp_path / "sd" / "config.json").read_text())
    (tmp_path / "sd" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 768}))
    with pytest.raises(IncompatibleError, match="width 768, this model makes 16"):
        read_adapters(model.folder, controls=[f"canny={files}/photo.png"], controlnet_models=[f"canny={tmp_path}/sd"])


def test_defaults_are_those_for_stable_diffusion(model):
    big = type("Folder", (), {"cfg": model.folder.cfg.model_copy(update={"aligner": type(model.folder.cfg.aligner)()})})
    assert {find_controlnet(kind, None, big).location for kind in CONTROLNETS} == set(CONTROLNETS.values())
    assert find_controlnet("canny", None, big).location == "lllyasviel/control_v11p_sd15_canny"
    assert find_maker("depth", None).location == "Intel/dpt-large" and find_maker("canny", None) is None
    with pytest.raises(UsageError, match="--controlnet-model canny=FOLDER"):
        find_controlnet("canny", None, model.folder)


# ---------------------------------------------------------------- maps


@pytest.fixture
def scene():
    image = Image.new("RGB", (64, 48), (250, 250, 250))
    ImageDraw.Draw(image).rectangle((16, 12, 48, 36), fill=(20, 20, 20))
    return image


@pytest.mark.parametrize("kind", ["canny", "scribble", "softedge"])
def test_opencv_maps_are_white_at_the_outline_alone(scene, kind):
    pixels = np.asarray(make_map(kind, scene))
    assert pixels.shape == (48, 64, 3) and (pixels == pixels[..., :1]).all() and pixels.max() == 255
    assert pixels[24, 15:18].max() > 128 and pixels[24, 32].max() == 0 and pixels[2, 2].max() == 0


def test_depth_and_segments_come_from_transformers(scene, tmp_path):
    from transformers import (
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessor,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    depth = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    model = DPTForDepthEstimation(depth)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.abs_()  # below 0 everything is equally far away
    model.save_pretrained(tmp_path / "depth")
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "depth")
    segments = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], num_attention_heads=[1, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[1, 1], decoder_hidden_size=8, num_labels=150,
    )  # fmt: skip
    SegformerForSemanticSegmentation(segments).save_pretrained(tmp_path / "seg")
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "seg")
    near = make_map("depth", scene, str(tmp_path / "depth"), local_files_only=True)
    assert near.size == scene.size and near.getextrema()[0] == (0, 255)
    coloured = make_map("seg", scene, str(tmp_path / "seg"), local_files_only=True)
    colours = {ADE20K_COLOURS[i : i + 3] for i in range(0, len(ADE20K_COLOURS), 3)}
    assert coloured.size == scene.size and {bytes(colour) for _, colour in coloured.getcolors()} <= colours


def test_an_image_covers_the_output_size(scene):
    assert fit_to(scene, (64, 48)) is scene
    assert fit_to(scene, (32, 32)).size == (32, 32)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--lora", "gone.safetensors:0.5"], 3, "no LoRA file gone.safetensors"),
        (["--lora", "cat.png"], 3, "is not a .safetensors file"),
        (["--lora", "style.safetensors:11"], 2, "from -10 to 10"),
        (["--lora", "style.safetensors", "--lora", "style.safetensors:0.5"], 2, "given twice"),
        (["--lora", "canny/diffusion_pytorch_model.safetensors"], 4, "is not a LoRA file"),
        (["--controlnet", "cat.png"], 2, "is not KIND=IMAGE"),
        (["--controlnet", "canny="], 2, "is not KIND=IMAGE"),
        (["--controlnet", "canny=gone.png"], 3, "no image gone.png"),
        (["--controlnet", "canny=cat.png:3"], 2, "from 0 to 2"),
        (["--controlnet", "openpose=cat.png"], 2, "openpose=@map.png"),
        (["--controlnet", "canny=cat.png"], 2, "--controlnet-model canny=FOLDER"),
        (["--controlnet", "canny=cat.png", "--controlnet-model", "canny=gone"], 3, "no folder gone"),
        (["--controlnet", "canny=cat.png", "--controlnet-model", "canny=."], 3, "config.json"),
        (["--controlnet-model", "canny=canny"], 2, "needs --controlnet canny"),
        (["--map-model", "depth=x/y", "--map-model", "depth=x/z"], 2, "given twice"),
        (["--offload", "disk"], 2, "none, model, sequential"),
    ],
)
def test_all_is_checked_before_torch_loads(kg, tiny_model, files, cat, tmp_path, without_engine, flags, code, words):
    (tmp_path / "style.safetensors").symlink_to(files / "style.safetensors")
    (tmp_path / "canny").symlink_to(files / "canny")
    done = kg("generate", "a cat", "--model", tiny_model, *flags)
    assert done.code == code and words in done.err and done.err.startswith("error: "), done.err


@pytest.fixture
def generated(kg, tiny_model, files, tmp_path):
    flags = ["--lora", f"{files}/style.safetensors:0.7", "--controlnet", f"canny={files}/photo.png:0.8"]
    flags += ["--controlnet-model", f"canny={files}/canny", "--scheduler", "lcm", "-s", "1", "-o", "out.png"]
    done = kg("generate", "a cat", "--model", tiny_model, *flags)
    assert (done.code, done.err) == (0, ""), done.err
    return tmp_path / "out.png"


def test_metadata_name_what_was_used(generated, files):
    metadata = read_metadata(generated)
    lora, control = metadata["adapters"]
    assert (lora["type"], lora["name"], lora["scale"]) == ("lora", "style.safetensors", 0.7)
    assert (control["kind"], control["scale"], control["image"]["name"]) == ("canny", 0.8, "photo.png")
    assert control["model"]["name"] == "canny" and len(lora["sha256"]) == len(control["model"]["sha256"]) == 64
    assert str(files) not in json.dumps(metadata)
    parameters = Image.open(generated).info["parameters"]
    assert parameters.startswith("a cat <lora:style:0.7>\n")
    assert f'Lora hashes: "style: {lora["autov3"][:12]}"' in parameters
    assert 'ControlNet 0: "Module: canny, Model: canny, Weight: 0.8"' in parameters


def test_replay_finds_them_again(generated, kg, tiny_model, files, tmp_path):
    replay = ["generate", "--from", "out.png", "--model", tiny_model, "-o", "again.png"]
    assert "style.safetensors" in kg(*replay).err
    (tmp_path / "style.safetensors").symlink_to(files / "style.safetensors")
    assert "folder canny" in kg(*replay).err
    found = ["--controlnet-model", f"canny={files}/canny", "--image", f"{files}/photo.png"]
    assert kg(*replay, *found).code == 0
    assert (tmp_path / "again.png").read_bytes() == generated.read_bytes()
    assert kg(*replay, "--lora", f"{files}/both.safetensors", "-q", "--overwrite").code == 0
    assert [entry["name"] for entry in read_metadata(tmp_path / "again.png")["adapters"]] == ["both.safetensors"]


def test_offload_without_an_accelerator_is_a_note(kg, tiny_model):
    done = kg("generate", "a cat", "--model", tiny_model, "-s", "1", "--device", "cpu", "--offload", "model")
    assert done.code == 0 and "note: --offload model has no effect" in done.err


def test_numbers_after_a_colon_belong_to_a_file_of_that_name(tiny_model, files, tmp_path):
    odd = tmp_path / "style.safetensors:1"
    odd.symlink_to(files / "style.safetensors")
    with pytest.raises(Exception, match="is not a .safetensors file"):
        read_adapters(open_model(str(tiny_model)), loras=[str(odd)])
    assert read_adapters(open_model(str(tiny_model)), loras=[f"{files}/style.safetensors:-1.5"]).loras[0].scale == -1.5


# ---------------------------------------------------------------- the model that ships


def test_the_shipped_model_takes_both(tmp_path):
    nano = engine.load(device="cpu")
    decoder = nano.folder.decoder
    write_diffusers(tmp_path / "style.safetensors", lora_weights(Path(decoder), 1))
    channels = (4, 8, 16, 32)  # for three halvings, as of the VAE
    network = ControlNetModel.from_unet(nano.pipeline.decoder.unet, conditioning_embedding_out_channels=channels)
    scatter([*network.controlnet_down_blocks.parameters(), *network.controlnet_mid_block.parameters()], 3, size=0.1)
    scatter(network.controlnet_cond_embedding.parameters(), 4)
    network.save_pretrained(tmp_path / "canny")
    options = {
        "lora": {"loras": [f"{tmp_path}/style.safetensors:0.5"]},
        "control": {"controls": ["canny=nano/cat.png"], "controlnet_models": [f"canny={tmp_path}/canny"]},
    }
    images = [
        generate(nano, num_steps=2, **given) for given in ({}, *options.values(), options["lora"] | options["control"])
    ]
    assert {image.shape for image in images} == {(128, 128, 3)}
    assert len({image.tobytes() for image in images}) == 4

"""LoRA files of every layout do to the U-Net what merging them by hand does, or are refused in one line."""

from __future__ import annotations

import json
import os

import accelerate
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lora_layouts import LAYOUTS, Layout, Maker, diffusers, kohya, kohya_name, merged
from safetensors.torch import save_file

from kgcli.errors import IncompatibleError, MissingError
from kgcli.inference.adapters.loras import Loras
from kgcli.inference.adapters.named import open_lora, read_adapters
from kgcli.weights.folder import open_model

EXPECTED_LAYERS = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def unet(tiny_model):
    return UNet2DConditionModel.from_pretrained(tiny_model / "decoder" / "unet").requires_grad_(False).eval()


@pytest.fixture
def loras(unet):
    """LoRA files put on the U-Net and taken off."""
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    return Loras(StableDiffusionPipeline(unet=unet, **absent, requires_safety_checker=False))


@pytest.fixture
def maker(unet):
    return Maker({name: tensor.clone() for name, tensor in unet.state_dict().items()}, seed=1)


def look(unet):
    """Return the U-Net's output for some latents."""
    random = torch.Generator().manual_seed(0)
    latents, conditioning = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 3, 16, generator=random)
    with torch.no_grad():
        return unet(latents, torch.tensor([3, 500]), conditioning).sample


def write(folder, layout: Layout, name="style.safetensors"):
    path = folder / ("adapter_model.safetensors" if layout.config else name)
    save_file(
        {key: tensor.contiguous() for key, tensor in layout.tensors.items()}, path, metadata=layout.metadata or None
    )
    if layout.config:
        (folder / "adapter_config.json").write_text(json.dumps(layout.config))
    return path


def look_merged(tiny_model, layout: Layout, scale=1.0):
    """Return the output of a U-Net with the changes in its own weights."""
    other = UNet2DConditionModel.from_pretrained(tiny_model / "decoder" / "unet").eval()
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for name, change in layout.changes.items():
            parameters[name if name in parameters else f"{name}.weight"].add_(scale * change)
    return look(other)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_what_merging_it_by_hand_gives(name, unet, loras, maker, tiny_model, tmp_path, caplog):
    before, layout = look(unet), LAYOUTS[name](maker)
    loras.put_on([open_lora(write(tmp_path, layout), 1.0)])
    expected, found = look_merged(tiny_model, layout), look(unet)
    assert (found - before).abs().max() > 100 * (found - expected).abs().max()
    torch.testing.assert_close(found, expected, **EXPECTED_LAYERS)
    loras.put_on([])
    torch.testing.assert_close(look(unet), before, rtol=0, atol=0)
    assert not caplog.records


@pytest.mark.parametrize("name", ["kohya_one_alpha", "dora", "loha", "norms", "differences"])
def test_a_scale_is_a_share_of_the_change(name, unet, loras, maker, tiny_model, tmp_path):
    """Of DoRA in LyCORIS' names too: as in the programs that read those."""
    layout, before = LAYOUTS[name](maker), look(unet)
    path = write(tmp_path, layout)
    loras.put_on([open_lora(path, -0.5)])
    torch.testing.assert_close(look(unet), look_merged(tiny_model, layout, -0.5), **EXPECTED_LAYERS)
    loras.put_on([open_lora(path, 0.0)])
    torch.testing.assert_close(look(unet), before, rtol=0, atol=0)


def test_several_at_once_add_up(unet, loras, maker, tiny_model, tmp_path):
    layouts = [LAYOUTS[name](maker) for name in ("kohya_one_alpha", "differences", "loha")]
    paths = [write(tmp_path, layout, f"{index}.safetensors") for index, layout in enumerate(layouts)]
    loras.put_on([open_lora(path, 0.5) for path in paths])
    changes: dict[str, torch.Tensor] = {}
    for layout in layouts:
        for key, change in layout.changes.items():
            changes[key] = changes.get(key, 0) + 0.5 * change
    torch.testing.assert_close(look(unet), look_merged(tiny_model, Layout({}, changes)), **EXPECTED_LAYERS)


def test_a_folder_of_peft_and_its_file_are_the_same(maker, tmp_path):
    path = write(tmp_path, LAYOUTS["peft_folder"](maker))
    folder, file = open_lora(tmp_path, 1.0), open_lora(path, 1.0)
    assert folder.source == file.source and folder.header.scale.of("x", 4) == 2.0
    (tmp_path / "adapter_config.json").write_text("[1")
    with pytest.raises(MissingError, match="damaged"):
        open_lora(path, 1.0)


def test_half_precision_unets_take_whole_changes(unet, loras, maker, tmp_path):
    unet.to(torch.bfloat16)
    loras.put_on([open_lora(write(tmp_path, LAYOUTS["differences"](maker)), 1.0)])
    latents, conditioning = torch.zeros(1, 4, 8, 8).bfloat16(), torch.zeros(1, 3, 16).bfloat16()
    with torch.no_grad():
        assert unet(latents, torch.tensor([3]), conditioning).sample.dtype == torch.bfloat16


# ---------------------------------------------------------------- what is left out is said


def test_layers_of_another_unet_are_counted_and_named(unet, loras, maker, tiny_model, tmp_path, caplog):
    factors = maker.factors(maker.attention)
    layout = Layout(kohya(factors, 2), merged(factors))
    layout.tensors |= {f"lora_unet_down_blocks_7_x.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    loras.put_on([open_lora(write(tmp_path, layout), 1.0)])
    torch.testing.assert_close(look(unet), look_merged(tiny_model, layout), **EXPECTED_LAYERS)
    assert f"2 of its {len(layout.tensors)} U-Net tensors have no layer" in caplog.text
    assert "lora_unet_down_blocks_7_x.lora_down.weight" in caplog.text


@pytest.mark.parametrize("style", [kohya, diffusers])
def test_bundled_embeddings_and_text_encoders_are_left_out_with_a_note(
    style, unet, loras, maker, tiny_model, tmp_path, caplog
):
    factors = maker.factors(maker.attention)
    layout = Layout(style(factors), merged(factors))
    layout.tensors["bundle_emb.mycat.string_to_param.*"] = torch.ones(2, 8)
    layout.tensors["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 8)
    loras.put_on([open_lora(write(tmp_path, layout), 1.0)])
    torch.testing.assert_close(look(unet), look_merged(tiny_model, layout), **EXPECTED_LAYERS)
    assert "bundle_emb" in caplog.text and "text encoder" in caplog.text


def test_what_peft_does_not_hold_is_an_error(loras, maker, tmp_path, monkeypatch):
    """Values are compared after loading: a library that drops or rescales a layer is found out."""
    path = write(tmp_path, LAYOUTS["kohya_one_alpha"](maker))
    load = type(loras.sd).load_lora_into_unet

    def drop(state, **options):
        key = next(iter(state))
        load({**state, key: state[key] * 2}, **options)

    monkeypatch.setattr(loras.sd, "load_lora_into_unet", drop)
    with pytest.raises(IncompatibleError, match="1 tensors differ"):
        loras.put_on([open_lora(path, 1.0)])


# ---------------------------------------------------------------- what is refused, before torch loads

NAME = kohya_name("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
PAIR = {f"{NAME}.lora_down.weight": (2, 8), f"{NAME}.lora_up.weight": (8, 2)}


@pytest.mark.parametrize(
    ("shapes", "metadata", "words"),
    [
        ({f"{NAME}.a1.weight": (2, 8), f"{NAME}.a2.weight": (8, 2)}, {}, "GLoRA"),
        ({f"{NAME}.weight": (8,), f"{NAME}.on_input": ()}, {}, "(IA)^3"),
        ({f"{NAME}.oft_blocks": (2, 4, 4)}, {}, "OFT"),
        ({**PAIR, f"{NAME}.lora_sparkle": (2, 8)}, {}, "is of an unknown kind"),
        ({"conv_in.weight": (8, 4, 3, 3)}, {}, "is not a LoRA file"),
        ({"text_encoder.x.lora_A.weight": (2, 8)}, {}, "only changes the text encoder"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 9)}, {}, "for Flux"),
        ({"diffusion_model.blocks.0.attn.lora_A.weight": (4, 9)}, {}, "diffusion transformer"),
        ({NAME.replace("attn1_to_q", "attn2_to_k") + ".lora_down.weight": (4, 2048)}, {}, "Stable Diffusion XL"),
        ({kohya_name("up_blocks.9.x") + ".lora_down.weight": (4, 8)}, {}, "none of its 1 tensors has a layer"),
        (PAIR, {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})}, "no magnitudes"),
        (PAIR, {"lora_adapter_metadata": json.dumps({"unet.peft_type": "LOHA"})}, "kind LOHA"),
        (PAIR, {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": "pissa_niter_4"})}, "pissa"),
        (PAIR, {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"(a+)+": 1}})}, "not a plain layer name"),
        (PAIR, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "much"})}, "is not a number"),
        (PAIR, {"alpha": "nan"}, "is not a number"),
    ],
)
def test_what_cannot_be_applied_is_one_short_line(kg, tiny_model, tmp_path, without_engine, shapes, metadata, words):
    save_file(
        {key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "odd.safetensors", metadata or None
    )
    done = kg("generate", "a cat", "--model", tiny_model, "--lora", "odd.safetensors")
    assert done.code == 4 and words in done.err, done.err
    assert done.err.count("\n") == 1 and len(done.err.encode()) < 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{NAME}.lora_down.weight": torch.zeros(2, 7)}, "lora_down of the shape [2, 7], where [2, 8]"),
        ({f"{NAME}.lora_up.weight": None}, "no up beside"),
        ({f"{NAME}.lora_down.weight": None, f"{NAME}.lora_up.weight": None, f"{NAME}.alpha": torch.ones(())}, "alone"),
        ({f"{NAME}.lora_up.weight": torch.full((8, 2), torch.nan)}, "NaN"),
        ({f"{NAME}.lora_mid.weight": torch.zeros(3, 3, 3, 3)}, "factors whose shapes do not match"),
        ({f"{NAME}.dora_scale": torch.zeros(5)}, "dora_scale of the shape"),
        ({f"{NAME}.diff_b": torch.zeros(8)}, "a change of its bias"),
        ({f"unet.{NAME[10:]}.lora_A.weight": torch.zeros(2, 8)}, "the same part of one layer"),
    ],
)
def test_parts_that_do_not_fit_are_named(loras, tmp_path, change, words):
    tensors = {**{key: torch.zeros(shape) for key, shape in PAIR.items()}, **change}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "odd.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        loras.put_on([open_lora(tmp_path / "odd.safetensors", 1.0)])
    assert words in str(caught.value) and len(str(caught.value)) < 300


def test_a_folder_without_a_lora_is_missing(tmp_path):
    with pytest.raises(MissingError, match="neither pytorch_lora_weights.safetensors"):
        open_lora(tmp_path, 1.0)


def test_autov3_is_the_hash_of_the_tensors_alone(maker, tiny_model, tmp_path):
    layout = LAYOUTS["kohya_one_alpha"](maker)
    one = open_lora(write(tmp_path, layout, "one.safetensors"), 1.0)
    layout.metadata["ss_comment"] = "other words"
    other = open_lora(write(tmp_path, layout, "other.SafeTensors"), 1.0)
    assert one.autov3 == other.autov3 and one.source.sha256 != other.source.sha256
    data = (tmp_path / "one.safetensors").read_bytes()
    from hashlib import sha256

    assert one.autov3 == sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    os.replace(tmp_path / "other.SafeTensors", tmp_path / "x.safetensors")
    assert read_adapters(open_model(str(tiny_model)), loras=[f"{tmp_path}/x.safetensors"]).loras[0].scale == 1.0


@pytest.mark.parametrize("name", ["dora", "loha", "differences", "kohya_one_alpha"])
def test_weights_that_are_lent_layer_by_layer_take_loras_too(
    name, unet, loras, maker, tiny_model, tmp_path, monkeypatch
):
    """Sequential offload keeps no weight in the module itself; accelerate's hooks bring each when it is needed."""
    layout = LAYOUTS[name](maker)
    accelerate.cpu_offload(unet, torch.device("cpu"))
    assert unet.conv_in.weight.is_meta
    # diffusers takes the hooks off to load, and would put them on again for an accelerator.
    monkeypatch.setattr(
        loras.sd, "enable_sequential_cpu_offload", lambda: accelerate.cpu_offload(unet, torch.device("cpu"))
    )
    loras.put_on([open_lora(write(tmp_path, layout), 1.0)])
    torch.testing.assert_close(look(unet), look_merged(tiny_model, layout), **EXPECTED_LAYERS)

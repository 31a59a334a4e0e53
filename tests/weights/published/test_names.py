"""Laws of the weight names: there and back, nothing silently lost, foreign towers compute the same."""

import pytest
import torch
from tiny_model import CONFIG, make_model
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from kgcli.errors import IncompatibleError
from kgcli.model.vision import VisionTower
from kgcli.weights.published.names import (
    EMBEDDING,
    OUTPUT_PROJECTION,
    decoder_weights,
    from_published,
    to_published,
    vision_from_open_clip,
    vision_from_transformers,
)


@pytest.fixture
def state():
    return make_model(with_aligner_decoder=True).state_dict()


def test_names_survive_the_way_there_and_back(state):
    published = to_published(state)
    assert len(published) == len(state) + 1  # the tied output map
    back = from_published(published)
    assert back.keys() == state.keys()
    assert all(back[name] is tensor or torch.equal(back[name], tensor) for name, tensor in state.items())


def test_what_serves_nothing_is_dropped(state):
    published = to_published(state)
    published["gpt_model.decoder.embed_positions._float_tensor"] = torch.zeros(1)
    published["gpt_model.decoder.self_attn_sope.scale"] = torch.zeros(6)
    published["aligner.clip_encoder.text_model.final_layer_norm.weight"] = torch.zeros(3)
    published["img_model.visual.transformer.resblocks.0.attn.in_proj_weight"] = torch.full((48, 16), torch.nan)
    published["diffusion_unet.unet.conv_in.weight"] = torch.zeros(3)
    assert from_published(published).keys() == state.keys()


def test_an_unknown_name_is_refused(state):
    with pytest.raises(IncompatibleError, match=r"1 weight.* such as gpt_model\.encoder\.weight"):
        from_published(to_published(state) | {"gpt_model.encoder.weight": torch.zeros(1)})


def test_an_output_map_of_its_own_is_refused(state):
    published = to_published(state)
    published[OUTPUT_PROJECTION] = published[EMBEDDING] + 1
    with pytest.raises(IncompatibleError, match="KOSMOS-G ties the two"):
        from_published(published)


def test_the_decoders_old_attention_names_become_todays():
    block = "decoder.mid_block.attentions.0"
    old = {f"vae.vae.{block}.{part}.weight": torch.zeros(1) for part in ("query", "key", "value", "proj_attn")}
    unet, vae = decoder_weights(old | {"diffusion_unet.unet.conv_in.bias": torch.zeros(1), "other": torch.zeros(1)})
    assert list(unet) == ["conv_in.bias"]
    assert list(vae) == [f"{block}.{part}.weight" for part in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.mark.parametrize("whole", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
def test_a_transformers_tower_computes_the_same_here(whole):
    cfg = CONFIG.vision
    torch.manual_seed(0)
    vision = {
        "hidden_size": cfg.width,
        "intermediate_size": int(cfg.width * cfg.mlp_ratio),
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "hidden_act": cfg.activation,
    }
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    foreign = CLIPModel(CLIPConfig(vision_config=vision, text_config=text | {"vocab_size": 9})).eval()
    with torch.no_grad():  # layer norms begin as ones and zeros; a mix-up must show
        for parameter in foreign.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source = foreign
    if not whole:
        source = CLIPVisionModel(foreign.config.vision_config)
        inside = foreign.vision_model.state_dict()
        own = source.state_dict()
        source.load_state_dict({name: inside[name.removeprefix("vision_model.")] for name in own})
    tower = VisionTower(cfg).eval()
    tower.load_state_dict(vision_from_transformers(source.state_dict()))
    pixels = torch.randn(2, 3, cfg.image_size, cfg.image_size)
    with torch.no_grad():
        output = foreign.vision_model(pixels)
        expected = foreign.vision_model.post_layernorm(output.last_hidden_state)
        torch.testing.assert_close(tower.tokens(pixels), expected)
        torch.testing.assert_close(tower.tokens(pixels)[:, 0], output.pooler_output)


@pytest.mark.parametrize("convert", [vision_from_transformers, vision_from_open_clip])
def test_weights_without_a_vision_tower_are_refused(convert):
    with pytest.raises(IncompatibleError, match="no .*vision tower"):
        convert({"text_model.weight": torch.zeros(1)})

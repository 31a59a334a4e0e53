"""Names of layers in other programs' files, against diffusers' own conversion of Stable Diffusion v1.5."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from ldm_names import write_single_file
from safetensors.torch import load_file

from kgcli.weights.decoder import load_decoder
from kgcli.weights.lora.unet_names import layer_aliases, layers_of, ldm_unet_names, ldm_vae_names
from kgcli.weights.shipped import SD15_SIZES
from kgcli.weights.single_file_header import UNET, VAE


@pytest.mark.parametrize(
    ("kind", "part", "names_of", "convert", "prefix"),
    [
        (UNet2DConditionModel, "unet", ldm_unet_names, convert_ldm_unet_checkpoint, UNET),
        (AutoencoderKL, "vae", ldm_vae_names, convert_ldm_vae_checkpoint, VAE),
    ],
)
def test_diffusers_turns_our_names_back_into_its_own(kind, part, names_of, convert, prefix):
    config = kind.load_config(SD15_SIZES / part)
    with torch.device("meta"):
        model = kind.from_config(config)
    ldm = names_of(model.state_dict())
    assert len(set(ldm.values())) == len(ldm)
    # Each tensor's value identifies it.
    numbers = {name: number for number, name in enumerate(ldm)}
    checkpoint = {f"{prefix}{other}": torch.full((1, 1, 1, 1), float(numbers[name])) for name, other in ldm.items()}
    back = convert(dict(checkpoint), dict(config))
    assert {name: int(tensor.flatten()[0]) for name, tensor in back.items()} == numbers


def test_names_of_the_tiny_decoder_are_those_of_its_single_file(tiny_model, tmp_path):
    decoder = load_decoder(tiny_model / "decoder")
    write_single_file(decoder, tmp_path / "tiny.safetensors")
    ours = {f"{UNET}{name}" for name in ldm_unet_names(decoder.unet.state_dict()).values()}
    ours |= {f"{VAE}{name}" for name in ldm_vae_names(decoder.vae.state_dict()).values()}
    assert ours == set(load_file(tmp_path / "tiny.safetensors"))


def test_a_layer_has_four_names_and_shares_none():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15_SIZES / "unet"))
    layers = layers_of(unet.state_dict())
    aliases = layer_aliases(layers)
    layer = "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0"
    for name in (
        layer,
        layer.replace(".", "_"),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_out.0",
        "input_blocks_8_1_transformer_blocks_0_attn2_to_out_0",
    ):
        assert aliases[name] == layer
    assert aliases["output_blocks_5_2_conv"] == "up_blocks.1.upsamplers.0.conv"
    assert aliases["time_embed_0"] == "time_embedding.linear_1" and aliases["out_2"] == "conv_out"
    spelt = [name.replace(".", "_") for name in layers]
    assert len(set(spelt)) == len(layers)

"""Layer names of U-Nets and VAEs in diffusers and their equivalents in other programs.

    down_blocks.0.attentions.0.proj_in      diffusers
    input_blocks.1.1.proj_in                the original code of latent diffusion (LDM), in checkpoints
    down_blocks_0_attentions_0_proj_in      kohya's sd-scripts and LyCORIS, after `lora_unet_`
    input_blocks_1_1_proj_in                the same programs, of a U-Net in LDM names

All of them are derived from diffusers' names; none is guessed by replacing letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = {
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.attentions.0.to_": "mid.attn_1.",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\.conv)?")


def layers_of(parameters: Iterable[str]) -> list[str]:
    """Return the layers of parameters, such as `conv_in` of `conv_in.weight`."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))


def layer_aliases(layers: Iterable[str]) -> dict[str, str]:
    """Map every name that a LoRA file may give a layer, without the file's prefix, to diffusers' name."""
    layers = list(layers)
    ldm = ldm_unet_names(layers)
    aliases = {name.replace(".", "_"): layer for layer, other in ldm.items() for name in (other, layer)}
    return aliases | {other: layer for layer, other in ldm.items()} | {layer: layer for layer in layers}


def ldm_unet_names(names: Iterable[str]) -> dict[str, str]:
    """Map diffusers' names of a whole U-Net's layers or parameters to those of latent diffusion."""
    names = list(names)
    layers = 1 + max(
        (int(m[1]) for name in names if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)", name))), default=0
    )
    attending = {m[1] for name in names if (m := re.match(r"(up_blocks\.\d+)\.attentions", name))}
    return {name: _ldm_unet_name(name, layers, attending) for name in names}


def ldm_vae_names(names: Iterable[str]) -> dict[str, str]:
    """Map diffusers' names of a whole VAE's parameters to those of latent diffusion."""
    names = list(names)
    last = max((int(m[1]) for name in names if (m := re.match(r"encoder\.down_blocks\.(\d+)", name))), default=0)
    return {name: _ldm_vae_name(name, last) for name in names}


def _ldm_unet_name(name: str, layers: int, attending: set[str]) -> str:
    """Return the LDM name; `layers` counts the resnets of a down block, up blocks have one more."""
    if match := _BLOCK.match(name):
        side, block, kind, index = match[1], int(match[2]), match[3], int(match[4])
        rest = name[match.end() :]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op{rest}"
        if kind == "upsamplers":
            place = 1 + (f"up_blocks.{block}" in attending)
            return f"output_blocks.{block * (layers + 1) + layers}.{place}.conv{rest}"
        first = "input_blocks" if side == "down" else "output_blocks"
        number = block * (layers + 1) + index + (side == "down")
        conv = match[5] or ""
        return _ldm_resnet(f"{first}.{number}.{int(kind == 'attentions')}{conv}{rest}", kind)
    for ours, theirs in _ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            return _ldm_resnet(theirs + name.removeprefix(ours), "resnets" if "resnets" in ours else "")
    return name


def _ldm_resnet(name: str, kind: str) -> str:
    if kind == "resnets":
        for ours, theirs in _RESNET.items():
            name = re.sub(rf"\.{ours}(?=\.|$)", f".{theirs}", name)
    return name


def _ldm_vae_name(name: str, last: int) -> str:
    for ours, theirs in _VAE.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", name)


def shapes_of_layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Group the shapes of parameters by layer: `{"conv_in": {"weight": (320, 4, 3, 3), "bias": (320,)}}`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, parameter = name.rpartition(".")
        found.setdefault(layer, {})[parameter] = tuple(shape)
    return found

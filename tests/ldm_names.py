"""A decoder's weights under the names that CompVis gave them: what single-file checkpoints hold."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from kgcli.model.diffusion import Diffusion

RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
ENDS = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
]
VAE = [
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.to_", "mid.attn_1."),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
]


def write_single_file(decoder: Diffusion, path: Path, **others: Tensor) -> None:
    """One .safetensors file of a decoder; `others` stand for what else such files hold."""
    layers, attention = decoder.unet.config.layers_per_block, decoder.unet.config.up_block_types
    weights = {
        f"model.diffusion_model.{_unet_name(name, layers, attention)}": tensor
        for name, tensor in decoder.unet.state_dict().items()
    }
    last = len(decoder.vae.config.block_out_channels) - 1
    for name, tensor in decoder.vae.state_dict().items():
        is_linear = "attentions" in name and tensor.ndim == 2  # a 1 x 1 convolution there
        weights[f"first_stage_model.{_vae_name(name, last)}"] = tensor[..., None, None] if is_linear else tensor
    save_file({name: tensor.contiguous() for name, tensor in (weights | others).items()}, path)


def _unet_name(name: str, layers: int, up_types: tuple[str, ...]) -> str:
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", name):
        i, kind, j = int(match[1]), match[2], int(match[3])
        name = f"input_blocks.{i * (layers + 1) + j + 1}.{int(kind == 'attentions')}" + name[match.end() :]
    elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        name = f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op" + name[match.end() :]
    elif match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", name):
        i, kind, j = int(match[1]), match[2], int(match[3])
        name = f"output_blocks.{i * (layers + 1) + j}.{int(kind == 'attentions')}" + name[match.end() :]
    elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
        i = int(match[1])
        name = f"output_blocks.{i * (layers + 1) + layers}.{1 + ('Attn' in up_types[i])}.conv" + name[match.end() :]
    else:
        for ours, theirs in ENDS:
            if name.startswith(f"{ours}."):
                name = theirs + name.removeprefix(ours)
                break
    for ours, theirs in RESNET:
        if "transformer_blocks" not in name:
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae_name(name: str, last: int) -> str:
    for ours, theirs in VAE:
        name = name.replace(ours, theirs)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", name)

"""Weight names of other projects and their mapping to ours: published KOSMOS-G, open_clip and transformers CLIP.

Tensors are passed on, never copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kgcli.errors import IncompatibleError

TRANSFORMER_PARTS = {
    "self_attn": "self_attention",
    "self_attn_layer_norm": "self_attention_norm",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "inner_attn_ln": "inner_norm",
    "ffn_layernorm": "hidden_norm",
    "final_layer_norm": "ffn_norm",  # despite its name, the norm before the feed-forward part
    "layer_norm": "final_norm",
}
CLIP_PARTS = {
    "conv1": "patch_embed",
    "positional_embedding": "positions",
    "ln_pre": "pre_norm",
    "ln_post": "final_norm",
    "ts_attn": "attention",
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
    "c_fc": "fc1",
    "c_proj": "fc2",
}
TRANSFORMERS_PARTS = {
    "pre_layrnorm": "pre_norm",  # spelt this way in transformers
    "post_layernorm": "final_norm",
    "self_attn": "attention",
    "layer_norm1": "attention_norm",
    "layer_norm2": "mlp_norm",
}
VAE_ATTENTION_PARTS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Rule(NamedTuple):
    """A name mapping of one subtree: its prefix in each naming, and the parts of names that differ."""

    published: str
    ours: str
    parts: Mapping[str, str]


# The first rule that matches applies, so special cases precede general ones.
RULES = (
    Rule("gpt_model.decoder.embed_tokens.", "mllm.embedding.", {}),
    Rule("gpt_model.decoder.", "mllm.stack.", TRANSFORMER_PARTS),
    Rule("img_model.visual.transformer.resblocks.", "vision.blocks.", CLIP_PARTS),
    Rule("img_model.visual.", "vision.", CLIP_PARTS),
    Rule("img_connector.latent_query", "resampler.queries", {}),
    Rule("img_connector.dense.", "resampler.project.", {}),
    Rule("img_connector.x_attn.", "resampler.attention.", {}),
    Rule("aligner.encoder_query", "aligner.encoder.queries", {}),
    Rule("aligner.encoder_proj.embed_tokens.", "aligner.encoder.project.", {}),
    Rule("aligner.encoder_proj.embed_positions.weight", "aligner.encoder.positions", {}),
    Rule("aligner.encoder_proj.", "aligner.encoder.reader.", TRANSFORMER_PARTS),
    Rule("aligner.encoder.", "aligner.encoder.writer.", TRANSFORMER_PARTS),
    Rule("aligner.decoder_query", "aligner.decoder.queries", {}),
    Rule("aligner.decoder_proj.output_projection.", "aligner.decoder.project.", {}),
    Rule("aligner.decoder_proj.embed_positions.weight", "aligner.decoder.positions", {}),
    Rule("aligner.decoder_proj.", "aligner.decoder.writer.", TRANSFORMER_PARTS),
    Rule("aligner.decoder.", "aligner.decoder.reader.", TRANSFORMER_PARTS),
)
EMBEDDING = "gpt_model.decoder.embed_tokens.weight"
OUTPUT_PROJECTION = "gpt_model.decoder.output_projection.weight"  # the embedding, stored a second time
FLOAT_TENSOR = "gpt_model.decoder.embed_positions._float_tensor"  # uninitialised memory
ROTARY_SCALE = "gpt_model.decoder.self_attn_sope.scale"  # a constant of rotary positions, which are never applied
VISION = "img_model."
KOSMOS2_ROWS = 65_037  # tokens of Kosmos-2: ours, in the same order, then 1,030 for image locations
NUM_ROWS = 64_007
UNET = "diffusion_unet.unet."
VAE = "vae.vae."
DROPPED = (
    FLOAT_TENSOR,
    ROTARY_SCALE,
    "aligner.clip_encoder.",  # the decoder's own text encoder, frozen
    UNET,
    VAE,  # frozen too: see decoder_weights
)
FUSED = re.compile(r"(.*\.)attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)")


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a published KOSMOS-G state dict (any stage) to our names; unused weights are dropped.

    Raises:
        IncompatibleError: a name is unknown, or the output map is not the word embedding.
    """
    check_tied(state)
    counting = counting_weights(state)
    unknown = [name for name in counting if our_name(name) is None]
    if unknown:
        raise IncompatibleError(f"{len(unknown)} weight(s) are not of a KOSMOS-G checkpoint, such as {unknown[0]}")
    return renamed(counting)


def counting_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the used weights of a published state dict, under its published names, with fused attention split.

    The embedding of Kosmos-2 is cut to the tokens that KOSMOS-G has.
    """
    counting = {name: tensor for name, tensor in _split_attention(state).items() if not is_dropped(name)}
    if is_of_kosmos2(state):
        counting |= {name: counting[name][:NUM_ROWS] for name in (EMBEDDING, OUTPUT_PROJECTION) if name in counting}
    return counting


def is_of_kosmos2(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a published state dict has the vocabulary of Kosmos-2."""
    return EMBEDDING in state and state[EMBEDDING].dim() == 2 and len(state[EMBEDDING]) == KOSMOS2_ROWS


def renamed(counting: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the used weights to our names, without unknown names and the output map (a copy of the embedding)."""
    pairs = ((our_name(name), tensor) for name, tensor in counting.items() if name != OUTPUT_PROJECTION)
    return {name: tensor for name, tensor in pairs if name is not None}


def our_name(published: str) -> str | None:
    """Return our name of a published weight, or None if KOSMOS-G has no such part."""
    return name_by(RULES, published)


def name_by(rules: Iterable[Rule], foreign: str) -> str | None:
    """Return our name of a weight, by the first rule that matches its foreign name, or None."""
    rule = next((rule for rule in rules if foreign.startswith(rule.published)), None)
    return None if rule is None else rule.ours + _translate(foreign.removeprefix(rule.published), rule.parts)


def foreign_name(rules: Iterable[Rule], ours: str) -> str:
    """Return the foreign name of a weight that the rules cover: the inverse of `name_by`."""
    rule = next(rule for rule in rules if ours.startswith(rule.ours))
    parts = {ours: foreign for foreign, ours in rule.parts.items()}
    return rule.published + _translate(ours.removeprefix(rule.ours), parts)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our state dict to the published names, with the tied output map and without the dropped buffers."""
    published = {foreign_name(RULES, name): tensor for name, tensor in state.items()}
    if EMBEDDING in published:
        published[OUTPUT_PROJECTION] = published[EMBEDDING]
    return published


def published_buffers(head_width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the constant buffers that the loader of a published file expects."""
    # Source: xPos (arXiv:2212.10554), as torchscale computes it.
    scale = (torch.arange(0, head_width, 2) + 0.4 * head_width) / (1.4 * head_width)
    return {FLOAT_TENSOR: torch.zeros(1, dtype=dtype), ROTARY_SCALE: scale.to(dtype)}


def head_width(state: Mapping[str, Tensor]) -> int | None:
    """Return the width of one attention head: twice the length of the rotary constant; None without it."""
    return 2 * len(state[ROTARY_SCALE]) if ROTARY_SCALE in state and state[ROTARY_SCALE].dim() == 1 else None


def check_tied(state: Mapping[str, Tensor]) -> None:
    """Check that the output map equals the word embedding, if both are stored.

    Raises: IncompatibleError.
    """
    if OUTPUT_PROJECTION not in state or EMBEDDING not in state:
        return
    output, embedding = state[OUTPUT_PROJECTION], state[EMBEDDING]
    same = output.shape == embedding.shape and (output.is_meta or output.equal(embedding))
    if not same:
        raise IncompatibleError(f"{OUTPUT_PROJECTION} differs from {EMBEDDING}; KOSMOS-G ties the two")


def is_dropped(name: str) -> bool:
    """Tell whether a published weight is not used."""
    return name.startswith(DROPPED)


def num_dropped(state: Mapping[str, Tensor]) -> int:
    """Return the number of unused weights in a published state dict."""
    return sum(is_dropped(name) or _is_dead(name, state) for name in state)


def decoder_weights(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the U-Net's and the VAE's weights of a published checkpoint, under current diffusers names."""
    unet = {name.removeprefix(UNET): tensor for name, tensor in state.items() if name.startswith(UNET)}
    vae = {name.removeprefix(VAE): tensor for name, tensor in state.items() if name.startswith(VAE)}
    return unet, {_modern_vae_name(name): tensor for name, tensor in vae.items()}


def vision_from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision tower (names as in `VisionTower`) of an open_clip or OpenAI CLIP, without its head."""
    visual = {name: tensor for name, tensor in state.items() if name.startswith("visual.") and name != "visual.proj"}
    if not visual:
        raise IncompatibleError("there is no vision tower in these weights: no name begins with visual.")
    return _tower(from_published({f"img_model.{name}": tensor for name, tensor in visual.items()}))


def vision_from_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision tower of a CLIP state dict in either naming."""
    ours = any(name.startswith("visual.") for name in state)
    return vision_from_open_clip(state) if ours else vision_from_transformers(state)


def vision_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision tower (names as in `VisionTower`) of a transformers CLIPModel or CLIPVisionModel."""
    prefix = "vision_model."
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    # transformers 5 omits the prefix in a CLIPVisionModel.
    names = inside or dict(state)
    if "embeddings.class_embedding" not in names:
        raise IncompatibleError("there is no CLIP vision tower in these weights: embeddings.class_embedding is missing")
    return {
        _translate(_flatten_transformers(name), TRANSFORMERS_PARTS): tensor
        for name, tensor in names.items()
        if name != "embeddings.position_ids"
    }


def _translate(name: str, parts: Mapping[str, str]) -> str:
    return ".".join(parts.get(part, part) for part in name.split("."))


def _is_dead(name: str, state: Mapping[str, Tensor]) -> bool:
    """Tell whether a weight is fused attention that separate maps have replaced."""
    fused = FUSED.fullmatch(name)
    return fused is not None and f"{fused[1]}ts_attn.q_proj.weight" in state


def _split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split fused CLIP attention into query, key and value maps; separate maps take precedence."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        fused = FUSED.fullmatch(name)
        if fused is None:
            split[name] = tensor
            continue
        block, kind = fused.groups()
        if _is_dead(name, state):
            continue
        if kind.startswith("out_proj"):
            split[f"{block}ts_attn.{kind}"] = tensor
        else:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{block}ts_attn.{part}_proj.{kind.removeprefix('in_proj_')}"] = rows
    return split


def _tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("vision."): tensor for name, tensor in state.items()}


def _flatten_transformers(name: str) -> str:
    special = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "patch_embed.weight",
        "embeddings.position_embedding.weight": "positions",
    }
    return special.get(name, name.replace("encoder.layers.", "blocks.", 1))


def _modern_vae_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    return _translate(name, VAE_ATTENTION_PARTS)

"""Other projects' names for the same weights, and back: published KOSMOS-G, CLIP as open_clip and transformers have it.

The only file that knows foreign names. Tensors are passed on, never copied.
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
    "final_layer_norm": "ffn_norm",  # the published name misleads: it is the norm before the feed-forward part
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
    "pre_layrnorm": "pre_norm",  # spelt so in transformers
    "post_layernorm": "final_norm",
    "self_attn": "attention",
    "layer_norm1": "attention_norm",
    "layer_norm2": "mlp_norm",
}
VAE_ATTENTION_PARTS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Rule(NamedTuple):
    """One subtree: where it hangs in each naming, and how the parts of its names differ."""

    published: str
    ours: str
    parts: Mapping[str, str]


# The first rule that matches is taken, so the special case stands before the general one.
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
ROTARY_SCALE = "gpt_model.decoder.self_attn_sope.scale"  # a constant of rotary positions that are never applied
VISION = "img_model."
KOSMOS2_ROWS = 65_037  # the words of Kosmos-2: ours, in the same order, and after them 1,030 for places in an image
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
    """A published KOSMOS-G state dict (any stage) under our names; what serves nothing is dropped.

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
    """What of a published state dict counts, under its published names, with fused attention split.

    Of Kosmos-2's words those that KOSMOS-G has are kept.
    """
    counting = {name: tensor for name, tensor in _split_attention(state).items() if not is_dropped(name)}
    if is_of_kosmos2(state):
        counting |= {name: counting[name][:NUM_ROWS] for name in (EMBEDDING, OUTPUT_PROJECTION) if name in counting}
    return counting


def is_of_kosmos2(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a published state dict has the vocabulary of Kosmos-2."""
    return EMBEDDING in state and state[EMBEDDING].dim() == 2 and len(state[EMBEDDING]) == KOSMOS2_ROWS


def renamed(counting: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that count under our names; the output map, the embedding's double, and unknown names are left out."""
    pairs = ((our_name(name), tensor) for name, tensor in counting.items() if name != OUTPUT_PROJECTION)
    return {name: tensor for name, tensor in pairs if name is not None}


def our_name(published: str) -> str | None:
    """Our name of a published weight, or None where KOSMOS-G has no such part."""
    return name_by(RULES, published)


def name_by(rules: Iterable[Rule], foreign: str) -> str | None:
    """Our name of a weight, by the first rule that matches its foreign name; None where none does."""
    rule = next((rule for rule in rules if foreign.startswith(rule.published)), None)
    return None if rule is None else rule.ours + _translate(foreign.removeprefix(rule.published), rule.parts)


def foreign_name(rules: Iterable[Rule], ours: str) -> str:
    """The way back of `name_by`, for a weight that the rules cover."""
    rule = next(rule for rule in rules if ours.startswith(rule.ours))
    parts = {ours: foreign for foreign, ours in rule.parts.items()}
    return rule.published + _translate(ours.removeprefix(rule.ours), parts)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the published names, with the tied output map and without the dropped buffers."""
    published = {foreign_name(RULES, name): tensor for name, tensor in state.items()}
    if EMBEDDING in published:
        published[OUTPUT_PROJECTION] = published[EMBEDDING]
    return published


def published_buffers(head_width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The buffers of a published file that hold nothing learned; its loader expects them all the same."""
    # Source: xPos (arXiv:2212.10554), as torchscale computes it.
    scale = (torch.arange(0, head_width, 2) + 0.4 * head_width) / (1.4 * head_width)
    return {FLOAT_TENSOR: torch.zeros(1, dtype=dtype), ROTARY_SCALE: scale.to(dtype)}


def head_width(state: Mapping[str, Tensor]) -> int | None:
    """The width of one attention head, which no weight's shape tells; the rotary constant has half as many numbers."""
    return 2 * len(state[ROTARY_SCALE]) if ROTARY_SCALE in state and state[ROTARY_SCALE].dim() == 1 else None


def check_tied(state: Mapping[str, Tensor]) -> None:
    """See that the output map is the word embedding, where both are stored.

    Raises: IncompatibleError.
    """
    if OUTPUT_PROJECTION not in state or EMBEDDING not in state:
        return
    output, embedding = state[OUTPUT_PROJECTION], state[EMBEDDING]
    same = output.shape == embedding.shape and (output.is_meta or output.equal(embedding))
    if not same:
        raise IncompatibleError(f"{OUTPUT_PROJECTION} differs from {EMBEDDING}; KOSMOS-G has the two tied")


def is_dropped(name: str) -> bool:
    """Whether a published name holds nothing of ours."""
    return name.startswith(DROPPED)


def num_dropped(state: Mapping[str, Tensor]) -> int:
    """How many weights of a published state dict serve nothing."""
    return sum(is_dropped(name) or _is_dead(name, state) for name in state)


def decoder_weights(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The U-Net's and the VAE's weights in a published checkpoint, under the names of today's diffusers."""
    unet = {name.removeprefix(UNET): tensor for name, tensor in state.items() if name.startswith(UNET)}
    vae = {name.removeprefix(VAE): tensor for name, tensor in state.items() if name.startswith(VAE)}
    return unet, {_modern_vae_name(name): tensor for name, tensor in vae.items()}


def vision_from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower (names as in `VisionTower`) of an open_clip or OpenAI CLIP state dict; its head is dropped."""
    visual = {name: tensor for name, tensor in state.items() if name.startswith("visual.") and name != "visual.proj"}
    if not visual:
        raise IncompatibleError("there is no vision tower in these weights: no name begins with visual.")
    return _tower(from_published({f"img_model.{name}": tensor for name, tensor in visual.items()}))


def vision_from_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a CLIP state dict, whichever of the two projects named it."""
    ours = any(name.startswith("visual.") for name in state)
    return vision_from_open_clip(state) if ours else vision_from_transformers(state)


def vision_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower (names as in `VisionTower`) of a transformers CLIPModel or CLIPVisionModel state dict."""
    prefix = "vision_model."
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    # transformers 5 drops the prefix where the vision model stands alone.
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
    """Whether this is fused attention of a file that was saved before the modules were exchanged."""
    fused = FUSED.fullmatch(name)
    return fused is not None and f"{fused[1]}ts_attn.q_proj.weight" in state


def _split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fused CLIP attention as separate query, key and value maps; where both are stored the separate ones count."""
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

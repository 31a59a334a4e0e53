"""Conversion of a transformers Kosmos-2 to a stage 1 KOSMOS-G: names, sizes and vocabulary.

The two share one architecture: with the same weights hidden states and logits are equal. Kosmos-2 has 1,030 more
tokens, which denote image locations, and stretches images where the published KOSMOS-G crops them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from kgcli.config import CONFIG_NAME, ModelConfig
from kgcli.data.tokenizer import MODEL_NAMES
from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights.published.checkpoint import NUM_NAMED, PRETRAIN, Source, expected_weights
from kgcli.weights.published.names import (
    KOSMOS2_ROWS,
    NUM_ROWS,
    TRANSFORMER_PARTS,
    TRANSFORMERS_PARTS,
    Rule,
    foreign_name,
    name_by,
)
from kgcli.weights.safetensors import check_weights, read_weights

MODEL_TYPE = "kosmos-2"
WEIGHTS_NAME = "model.safetensors"
EMBEDDING = "mllm.embedding.weight"
RULES = (
    Rule("text_model.model.embed_tokens.", "mllm.embedding.", {}),
    Rule("text_model.model.", "mllm.stack.", TRANSFORMER_PARTS),
    Rule("vision_model.model.embeddings.class_embedding", "vision.class_embedding", {}),
    Rule("vision_model.model.embeddings.position_embedding.weight", "vision.positions", {}),
    Rule("vision_model.model.embeddings.patch_embedding.", "vision.patch_embed.", {}),
    Rule("vision_model.model.encoder.layers.", "vision.blocks.", TRANSFORMERS_PARTS),
    Rule("vision_model.model.", "vision.", TRANSFORMERS_PARTS),
    Rule("image_to_text_projection.latent_query", "resampler.queries", {}),
    Rule("image_to_text_projection.dense.", "resampler.project.", {}),
    Rule("image_to_text_projection.x_attn.", "resampler.attention.", {}),
)
OUTPUT_PROJECTION = "text_model.lm_head.weight"  # the embedding, in files that store it twice
DROPPED = (OUTPUT_PROJECTION, "text_model.model.embed_positions.", "vision_model.model.embeddings.position_ids")
# Settings that the architecture depends on; with any other value the weights are another model's.
FIXED: dict[str, dict[str, object]] = {
    "text_config": {
        "vocab_size": KOSMOS2_ROWS,
        "activation_function": "gelu",
        "scale_embedding": True,
        "layer_norm_eps": 1e-5,
        "add_cross_attention": False,
    },
    "vision_config": {"layer_norm_eps": 1e-5, "num_channels": 3},
}


class Kosmos2Source(Source):
    """A checked transformers folder of Kosmos-2."""

    def read(self) -> dict[str, Tensor]:
        """Read all weights under our names, memory-mapped anew."""
        return from_kosmos2(read_weights(self.path / WEIGHTS_NAME))


def open_kosmos2(folder: Path) -> Kosmos2Source:
    """Recognise a transformers folder of Kosmos-2 and check that it is complete.

    Raises:
        MissingError: a file is not there or is damaged.
        IncompatibleError: it is another model; the message names the difference.
    """
    cfg = read_config(folder)
    weights = read_weights(folder / WEIGHTS_NAME)
    counting = {name: tensor for name, tensor in weights.items() if not name.startswith(DROPPED)}
    expected = expected_weights(cfg, PRETRAIN)
    foreign = {foreign_name(RULES, name): tensor.shape for name, tensor in expected.items()}
    whole = foreign_name(RULES, EMBEDDING)
    foreign[whole] = torch.Size([KOSMOS2_ROWS, cfg.mllm.width])
    found = {name: tensor.shape for name, tensor in counting.items()}
    check_weights(foreign, found, source=str(folder), num_named=NUM_NAMED)
    _check_tied(weights, whole, folder)
    return Kosmos2Source(
        path=folder,
        clip=None,
        stage=PRETRAIN,
        cfg=cfg,
        shapes={name: tensor.shape for name, tensor in expected.items()},
        dtypes={name: counting[foreign_name(RULES, name)].dtype for name in expected},
        num_weights=len(weights),
        num_dropped=len(weights) - len(counting),
        sentencepiece=next((folder / name for name in MODEL_NAMES if (folder / name).is_file()), None),
    )


def from_kosmos2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of `Kosmos2ForConditionalGeneration` and keep the tokens that KOSMOS-G has.

    Raises: IncompatibleError for a name that Kosmos-2 does not have.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(DROPPED):
            continue
        our_name = name_by(RULES, name)
        if our_name is None:
            raise IncompatibleError(f"{name} is not a weight of Kosmos-2")
        ours[our_name] = tensor[:NUM_ROWS] if our_name == EMBEDDING else tensor
    return ours


def read_config(folder: Path) -> ModelConfig:
    """Return the sizes of a transformers folder of Kosmos-2.

    Raises: MissingError; IncompatibleError for another model or unsupported settings.
    """
    from transformers import Kosmos2Config  # for the defaults that a config.json omits

    path = folder / CONFIG_NAME
    values = _read_json(path)
    if values.get("model_type") != MODEL_TYPE:
        kind = values.get("model_type", "none of transformers")
        raise IncompatibleError(
            f"{folder} is a folder of another model ({kind}); `kg convert` takes a published checkpoint file, or the "
            f"transformers folder of {MODEL_TYPE}"
        )
    found = Kosmos2Config.from_dict(values)
    for part, settings in FIXED.items():
        for name, wanted in settings.items():
            value = getattr(getattr(found, part), name)
            if value != wanted:
                raise IncompatibleError(f"{path}: {part}.{name} is {value}; it must be {wanted} for KOSMOS-G")
    text, vision = found.text_config, found.vision_config
    sizes = {
        "vision": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "num_heads": vision.num_attention_heads,
            "num_layers": vision.num_hidden_layers,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "activation": vision.hidden_act,
        },
        "resampler": {
            "num_queries": found.latent_query_num,
            "num_heads": text.attention_heads,
            "dropout": text.attention_dropout,
        },
        "mllm": {
            "vocab_size": NUM_ROWS,
            "width": text.embed_dim,
            "num_layers": text.layers,
            "num_heads": text.attention_heads,
            "ffn_width": text.ffn_dim,
            "max_positions": text.max_position_embeddings,
            "dropout": text.dropout,
        },
        "image_fit": "stretch",
    }
    try:
        return ModelConfig.model_validate(sizes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise IncompatibleError(f"{path} does not fit KOSMOS-G: {where or 'sizes'}: {first['msg']}") from None


def _check_tied(weights: Mapping[str, Tensor], embedding: str, folder: Path) -> None:
    output = weights.get(OUTPUT_PROJECTION)
    if output is not None and not output.equal(weights[embedding]):
        raise IncompatibleError(f"{folder}: {OUTPUT_PROJECTION} differs from {embedding}; KOSMOS-G ties the two")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"there is no {path.name} in {path.parent}; a transformers folder has one")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise MissingError(f"{path} is damaged ({error}); fetch or copy it again") from None
    if not isinstance(values, dict):
        raise MissingError(f"{path} is damaged (no object); fetch or copy it again")
    return values

"""A tiny random Kosmos-2 with its real vocabulary sizes, as transformers and as fairseq save it."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kgcli.config import MLLMConfig, ModelConfig, ResamplerConfig, VisionConfig
from kgcli.weights.published.kosmos2 import from_kosmos2
from kgcli.weights.published.names import EMBEDDING, KOSMOS2_ROWS, OUTPUT_PROJECTION, to_published

NUM_PIECES = 64_000
# Ids of "An image of a snowman warming himself by a fire" in transformers' integration test of Kosmos-2.
SNOWMAN = {
    "An image of": [712, 1648, 9],
    "a snowman": [10, 43867],
    "warming himself by": [5950, 597, 32],
    "a fire": [10, 646],
}
CONFIG = ModelConfig(
    vision=VisionConfig(image_size=28, patch_size=7, width=32, num_heads=4, num_layers=3, mlp_ratio=2.0),
    resampler=ResamplerConfig(num_queries=8, num_heads=4),
    mllm=MLLMConfig(width=16, num_layers=3, num_heads=4, ffn_width=32),
    image_fit="stretch",
)


def make_kosmos2(seed: int = 0, **text: object) -> Kosmos2ForConditionalGeneration:
    """The sizes of `CONFIG`; every bias and norm is random, so that none is a 0 or 1 that hides a fault."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 16, "ffn_dim": 32, "layers": 3, "attention_heads": 4, **text}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    model = Kosmos2ForConditionalGeneration(
        Kosmos2Config(text_config=sizes, vision_config=vision, latent_query_num=8)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        embedding = model.text_model.model.embed_tokens.weight
        embedding.normal_(std=embedding.shape[1] ** -0.5)
        embedding[1] = 0
    return model


def save_kosmos2(folder: Path, model: Kosmos2ForConditionalGeneration, **options: object) -> None:
    """Write the folder as the Hub has it: transformers' files and the SentencePiece model."""
    model.save_pretrained(folder, **options)
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_bytes())


def save_fairseq(path: Path, model: Kosmos2ForConditionalGeneration, rows: int = KOSMOS2_ROWS) -> None:
    """Write the same weights in published names, with `rows` words."""
    state = to_published(from_kosmos2(model.state_dict()))
    words = model.text_model.model.embed_tokens.weight.detach()
    state[EMBEDDING] = words[:rows].clone() if rows <= len(words) else torch.zeros(rows, words.shape[1])
    state[OUTPUT_PROJECTION] = state[EMBEDDING]
    settings = {"decoder_embed_dim": 16, "decoder_attention_heads": 4}
    torch.save({"args": None, "cfg": {"model": settings}, "model": state}, path)


@cache
def sentencepiece_bytes() -> bytes:
    """A unigram model of 64,000 pieces: the snowman's words at their ids, letters, and fillers that no text has."""
    words = {
        token: "\u2581" + word
        for text, tokens in SNOWMAN.items()
        for token, word in zip(tokens, text.split(), strict=True)
    }
    letters = iter(["\u2581", *map(chr, range(33, 127))])
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = NUM_PIECES
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.escape_whitespaces = True
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for index in range(len(model.pieces), NUM_PIECES):
        token = index + 1  # the published dictionary has <pad> in front
        if token in words:
            model.pieces.add(piece=words[token], score=-5.0)
        else:
            model.pieces.add(piece=next(letters, f"\ue000{index}"), score=-10.0)
    return model.SerializeToString()


def write_random_kosmos2(folder: Path, config: Kosmos2Config) -> int:
    """Write a folder of any size in little memory: one random block over and over; returns the size of the weights."""
    with torch.device("meta"):
        state = Kosmos2ForConditionalGeneration(config).state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items() if name != "text_model.lm_head.weight"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + 4 * shape.numel()]}
        end += 4 * shape.numel()
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(block)):
            file.write(block[: min(len(block), end - start)])
    config.save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_bytes())
    return (folder / "model.safetensors").stat().st_size

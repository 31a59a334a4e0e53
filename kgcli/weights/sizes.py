"""Sizes: the weights a configuration asks for, how many numbers they are, and what configuration weights ask for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError
from kgcli.model.kosmosg import KosmosG

HEAD_WIDTH = 64  # of every attention of the published model
PARTS = ("vision.", "resampler.", "mllm.", "aligner.encoder.", "aligner.decoder.")


class Part(NamedTuple):
    """One row of the parameter table."""

    name: str
    prefixes: tuple[str, ...]
    paper: str  # the paper's figure, where it gives one


# Source: KOSMOS-G (arXiv:2310.02992), section 3.1. Stable Diffusion is not counted, nor is what one stage alone needs.
TABLE = (
    Part("language model", ("mllm.",), ""),
    Part("vision tower", ("vision.",), ""),
    Part("resampler", ("resampler.",), ""),
    Part("MLLM: these three", ("mllm.", "vision.", "resampler."), "1.6 B"),
    Part("AlignerNet", ("aligner.encoder.",), "225 M"),
    Part("total", ("mllm.", "vision.", "resampler.", "aligner.encoder."), "1.9 B"),
    Part("AlignerNet's way back, for the alignment stage alone", ("aligner.decoder.",), ""),
)


class Vote(NamedTuple):
    """A size, and whose axis tells it. All such weights vote, so that one of a wrong shape is found, not believed."""

    part: str
    size: str
    names: str
    axis: int


VOTES = (
    Vote("vision", "width", r"vision\.blocks\.\d+\.\w+_norm\.weight", 0),
    Vote("vision", "patch_size", r"vision\.patch_embed\.weight", -1),
    Vote("resampler", "num_queries", r"resampler\.queries", 0),
    Vote("mllm", "vocab_size", r"mllm\.embedding\.weight", 0),
    Vote("mllm", "width", r"mllm\.stack\.layers\.\d+\.\w+_norm\.weight", 0),
    Vote("mllm", "ffn_width", r"mllm\.stack\.layers\.\d+\.ffn\.fc1\.bias", 0),
    Vote("aligner", "width", r"aligner\.\w+\.\w+\.layers\.\d+\.\w+_norm\.weight", 0),
    Vote("aligner", "ffn_width", r"aligner\.\w+\.\w+\.layers\.\d+\.ffn\.fc1\.bias", 0),
    Vote("aligner", "num_queries", r"aligner\.encoder\.queries", 0),
    Vote("aligner", "max_positions", r"aligner\.(encoder\.positions|decoder\.positions|decoder\.queries)", 0),
)
DEPTHS = {
    "vision": r"(vision\.blocks)\.(\d+)\.",
    "mllm": r"(mllm\.stack\.layers)\.(\d+)\.",
    "aligner": r"(aligner\.\w+\.\w+\.layers)\.(\d+)\.",
}


@lru_cache(maxsize=4)
def meta_state(cfg: ModelConfig) -> Mapping[str, Tensor]:
    """All weights of a configuration by name, AlignerNet's way back too, with shapes and without memory."""
    with torch.device("meta"):
        return KosmosG(cfg, with_aligner_decoder=True).state_dict()


def count_parameters(cfg: ModelConfig) -> list[tuple[Part, int]]:
    """The parameter table of a configuration."""
    state = meta_state(cfg)
    return [
        (part, sum(tensor.numel() for name, tensor in state.items() if name.startswith(part.prefixes)))
        for part in TABLE
    ]


def infer_config(shapes: Mapping[str, torch.Size], head_width: int | None = None) -> ModelConfig:
    """The configuration that weights (our names) are of: the published one where most fit that, else by their shapes.

    Raises:
        IncompatibleError: they are no KOSMOS-G of any size, or the number of heads cannot be told.
    """
    published = ModelConfig()
    if _fit(shapes, published):
        return published
    values: dict[str, dict[str, Any]] = {part: {} for part in ("vision", "resampler", "mllm", "aligner")}
    for vote in VOTES:
        default = getattr(getattr(published, vote.part), vote.size)
        values[vote.part][vote.size] = _winner(shapes, vote.names, vote.axis) or default
    for part, pattern in DEPTHS.items():
        values[part]["num_layers"] = _depth(shapes, pattern)
    _add_picture_sizes(values["vision"], shapes)
    _add_heads(values, head_width or HEAD_WIDTH)
    values["mllm"]["max_positions"] = min(published.mllm.max_positions, max(1, values["aligner"]["max_positions"] - 2))
    if not any(name.startswith("aligner.") for name in shapes):
        del values["aligner"]  # the alignment stage will make one
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise IncompatibleError(f"these weights are of no KOSMOS-G: {error.errors()[0]['msg']}") from None


def _fit(shapes: Mapping[str, torch.Size], cfg: ModelConfig) -> bool:
    """Whether half of the weights, and half of what their parts should have, are as a configuration asks."""
    present = tuple(part for part in PARTS if any(name.startswith(part) for name in shapes))
    expected = {name: tensor.shape for name, tensor in meta_state(cfg).items() if present and name.startswith(present)}
    fitting = sum(shapes.get(name) == shape for name, shape in expected.items())
    return fitting > 0 and 2 * fitting >= max(len(shapes), len(expected))


def _winner(shapes: Mapping[str, torch.Size], names: str, axis: int) -> int | None:
    """What most weights of these names have on an axis."""
    answers = Counter(shape[axis] for name, shape in shapes.items() if shape and re.fullmatch(names, name))
    return answers.most_common(1)[0][0] if answers else None


def _depth(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    """Layers of a stack; a number that only a few weights carry is a fault among them, not a layer."""
    found = Counter(match.groups() for name in shapes if (match := re.match(pattern, name)))
    whole = {number for (_, number), count in found.items() if 2 * count >= max(found.values())}
    return len(whole)


def _add_picture_sizes(vision: dict[str, Any], shapes: Mapping[str, torch.Size]) -> None:
    default = ModelConfig().vision
    rows = _winner(shapes, r"vision\.positions", 0) or 0
    side = math.isqrt(max(0, rows - 1))
    whole = side > 0 and side * side == rows - 1
    vision["image_size"] = vision["patch_size"] * (side if whole else default.image_size // default.patch_size)
    hidden_width = _winner(shapes, r"vision\.blocks\.\d+\.mlp\.fc1\.bias", 0)
    vision["mlp_ratio"] = hidden_width / vision["width"] if hidden_width else default.mlp_ratio


def _add_heads(values: dict[str, dict[str, Any]], head_width: int) -> None:
    for part, width_of in (("vision", "vision"), ("resampler", "mllm"), ("mllm", "mllm"), ("aligner", "aligner")):
        width = values[width_of]["width"]
        if width % head_width:
            raise IncompatibleError(
                f"the number of attention heads cannot be told: the {part} has width {width}, which does not divide "
                f"into heads of {head_width}; give a config.json with the sizes (--config)"
            )
        values[part]["num_heads"] = width // head_width

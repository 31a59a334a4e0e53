"""Model sizes: the weights of a configuration, their number, and the configuration inferred from weights."""

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
    paper: str  # the paper's number, if it gives one


# Source: KOSMOS-G (arXiv:2310.02992), section 3.1. Stable Diffusion and parts used by one stage only are not counted.
TABLE = (
    Part("language model", ("mllm.",), ""),
    Part("vision tower", ("vision.",), ""),
    Part("resampler", ("resampler.",), ""),
    Part("MLLM: these three", ("mllm.", "vision.", "resampler."), "1.6 B"),
    Part("AlignerNet", ("aligner.encoder.",), "225 M"),
    Part("total", ("mllm.", "vision.", "resampler.", "aligner.encoder."), "1.9 B"),
    Part("AlignerNet's decoder, for the alignment stage only", ("aligner.decoder.",), ""),
)


class Vote(NamedTuple):
    """A size and the weights whose axis gives it; the most frequent value wins, so one wrong shape is detected."""

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
    """Return all weights of a configuration by name, AlignerNet's decoder included, on the meta device."""
    with torch.device("meta"):
        return KosmosG(cfg, with_aligner_decoder=True).state_dict()


def count_parameters(cfg: ModelConfig) -> list[tuple[Part, int]]:
    """Return the parameter table of a configuration."""
    state = meta_state(cfg)
    return [
        (part, sum(tensor.numel() for name, tensor in state.items() if name.startswith(part.prefixes)))
        for part in TABLE
    ]


def infer_config(shapes: Mapping[str, torch.Size], head_width: int | None = None) -> ModelConfig:
    """Infer the configuration of weights (our names): the published one if most fit it, else by their shapes.

    Raises:
        IncompatibleError: they are not a KOSMOS-G of any size, or the number of heads is unknown.
    """
    published = ModelConfig()
    if _fit(shapes, published):
        return published
    values: dict[str, dict[str, Any]] = {part: {} for part in ("vision", "resampler", "mllm", "aligner")}
    for vote in VOTES:
        default = getattr(getattr(published, vote.part), vote.size)
        values[vote.part][vote.size] = _most_common(shapes, vote.names, vote.axis) or default
    for part, pattern in DEPTHS.items():
        values[part]["num_layers"] = _depth(shapes, pattern)
    _add_image_sizes(values["vision"], shapes)
    _add_heads(values, head_width or HEAD_WIDTH)
    values["mllm"]["max_positions"] = min(published.mllm.max_positions, max(1, values["aligner"]["max_positions"] - 2))
    if not any(name.startswith("aligner.") for name in shapes):
        del values["aligner"]  # the alignment stage creates one
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise IncompatibleError(f"these are not the weights of a KOSMOS-G: {error.errors()[0]['msg']}") from None


def _fit(shapes: Mapping[str, torch.Size], cfg: ModelConfig) -> bool:
    """Tell whether a configuration fits half of the weights and half of those that their parts should have."""
    present = tuple(part for part in PARTS if any(name.startswith(part) for name in shapes))
    expected = {name: tensor.shape for name, tensor in meta_state(cfg).items() if present and name.startswith(present)}
    fitting = sum(shapes.get(name) == shape for name, shape in expected.items())
    return fitting > 0 and 2 * fitting >= max(len(shapes), len(expected))


def _most_common(shapes: Mapping[str, torch.Size], names: str, axis: int) -> int | None:
    """Return the most common size of an axis among the weights of these names."""
    answers = Counter(shape[axis] for name, shape in shapes.items() if shape and re.fullmatch(names, name))
    return answers.most_common(1)[0][0] if answers else None


def _depth(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    """Return the number of layers of a stack, ignoring indices that only a few weights have."""
    found = Counter(match.groups() for name in shapes if (match := re.match(pattern, name)))
    whole = {number for (_, number), count in found.items() if 2 * count >= max(found.values())}
    return len(whole)


def _add_image_sizes(vision: dict[str, Any], shapes: Mapping[str, torch.Size]) -> None:
    default = ModelConfig().vision
    rows = _most_common(shapes, r"vision\.positions", 0) or 0
    side = math.isqrt(max(0, rows - 1))
    whole = side > 0 and side * side == rows - 1
    vision["image_size"] = vision["patch_size"] * (side if whole else default.image_size // default.patch_size)
    hidden_width = _most_common(shapes, r"vision\.blocks\.\d+\.mlp\.fc1\.bias", 0)
    vision["mlp_ratio"] = hidden_width / vision["width"] if hidden_width else default.mlp_ratio


def _add_heads(values: dict[str, dict[str, Any]], head_width: int) -> None:
    for part, width_of in (("vision", "vision"), ("resampler", "mllm"), ("mllm", "mllm"), ("aligner", "aligner")):
        width = values[width_of]["width"]
        if width % head_width:
            raise IncompatibleError(
                f"the number of attention heads is unknown: the {part} has width {width}, which does not divide "
                f"into heads of {head_width}; give a config.json with the sizes (--config)"
            )
        values[part]["num_heads"] = width // head_width

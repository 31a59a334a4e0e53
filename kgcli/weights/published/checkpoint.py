"""Recognition and checks of published checkpoints, and the conversion of their weights to our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError, UsageError
from kgcli.weights.published import names as convert
from kgcli.weights.published.fairseq import Checkpoint, read_checkpoint
from kgcli.weights.safetensors import check_weights
from kgcli.weights.sizes import infer_config, meta_state

NUM_NAMED = 20  # weights that an error lists of each kind
PRETRAIN, ALIGN, INSTRUCT = "stage 1 (pretraining)", "stage 2 (alignment)", "final (instruction tuning)"


@dataclass(frozen=True)
class Source:
    """A checked checkpoint: its stage, sizes and dtypes, without its weights."""

    path: Path
    clip: Path | None  # source of the vision tower, if not the checkpoint
    stage: str
    cfg: ModelConfig
    shapes: Mapping[str, torch.Size]  # by our names, in the model's order
    dtypes: Mapping[str, torch.dtype]
    num_weights: int
    num_dropped: int
    sentencepiece: Path | None = None  # a tokenizer's model beside the weights

    def read(self) -> dict[str, Tensor]:
        """Read all weights under our names, memory-mapped anew if the format allows, so that pages are freed."""
        weights = convert.renamed(convert.counting_weights(read_checkpoint(self.path).weights))
        return weights | _read_tower(self.clip)

    def __str__(self) -> str:
        used = self.num_weights - self.num_dropped
        return f"{self.stage}: {self.num_weights} weights, {used} used and {self.num_dropped} not needed"


def open_source(path: Path, *, clip: Path | None = None, cfg: ModelConfig | None = None) -> Source:
    """Recognise a checkpoint and check that it is complete; `cfg` overrides the sizes inferred from its shapes.

    Raises:
        MissingError: a file is not there or is damaged.
        IncompatibleError: it would run code, or its weights are not those of a KOSMOS-G; the message lists them.
    """
    return check_source(read_checkpoint(path), path, clip=clip, cfg=cfg)


def check_source(
    checkpoint: Checkpoint, path: Path, *, clip: Path | None = None, cfg: ModelConfig | None = None
) -> Source:
    """Check an opened checkpoint, as `open_source`."""
    convert.check_tied(checkpoint.weights)
    counting = convert.counting_weights(checkpoint.weights)
    tower = _tower_for(counting, path, clip)
    ours = convert.renamed(counting) | tower
    stage = stage_of(ours)
    cfg = cfg or _find_config(checkpoint, ours, path)
    expected = expected_weights(cfg, stage)
    check_weights(
        _shapes(convert.to_published(expected)),
        _shapes(counting | convert.to_published(tower)),
        source=str(path),
        num_named=NUM_NAMED,
    )
    odd = [name for name, tensor in counting.items() if not tensor.is_floating_point()]
    if odd:
        raise IncompatibleError(f"{path} holds {len(odd)} integer weight(s), such as {odd[0]}; all must be floats")
    return Source(
        path=path,
        clip=clip,
        stage=stage,
        cfg=cfg,
        shapes=_shapes(expected),
        dtypes={name: ours[name].dtype for name in expected},
        num_weights=len(checkpoint.weights),
        num_dropped=convert.num_dropped(checkpoint.weights),
    )


def stage_of(weights: Mapping[str, object]) -> str:
    """Return the stage that produced these weights (our names)."""
    if not any(name.startswith("aligner.") for name in weights):
        return PRETRAIN
    return ALIGN if any(name.startswith("aligner.decoder.") for name in weights) else INSTRUCT


def expected_weights(cfg: ModelConfig, stage: str) -> dict[str, Tensor]:
    """Return the weights of a stage's result, by our names, on the meta device."""
    absent: dict[str, tuple[str, ...]] = {PRETRAIN: ("aligner.",), ALIGN: (), INSTRUCT: ("aligner.decoder.",)}
    return {name: tensor for name, tensor in meta_state(cfg).items() if not name.startswith(absent[stage])}


def _find_config(checkpoint: Checkpoint, ours: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Return the configuration of the weights; for Kosmos-2 with its way of making images square."""
    rows = len(checkpoint.weights.get(convert.EMBEDDING, ()))
    if rows > convert.NUM_ROWS and not convert.is_of_kosmos2(checkpoint.weights):
        raise IncompatibleError(
            f"{path} has {rows:,} words; KOSMOS-G has {convert.NUM_ROWS:,} and Kosmos-2 {convert.KOSMOS2_ROWS:,}. "
            "For a model of your own, give its config.json (--config)"
        )
    cfg = infer_config(_shapes(ours), _head_width(checkpoint))
    fit = {"image_fit": "stretch"} if convert.is_of_kosmos2(checkpoint.weights) else {}
    return cfg.model_copy(update=fit)


def _tower_for(counting: Mapping[str, Tensor], path: Path, clip: Path | None) -> dict[str, Tensor]:
    """Return the vision tower of a CLIP file, for a checkpoint without one."""
    has_tower = any(name.startswith(convert.VISION) for name in counting)
    if has_tower and clip is not None:
        raise UsageError(f"{path} has its own vision tower, trained further than CLIP's; omit --clip")
    if not has_tower and clip is None and any(convert.our_name(name) for name in counting):
        raise IncompatibleError(
            f"{path} has no vision tower; give the CLIP ViT-L/14 file it was made with (--clip FILE)"
        )
    return _read_tower(clip)


def _read_tower(clip: Path | None) -> dict[str, Tensor]:
    if clip is None:
        return {}
    tower = convert.vision_from_clip(read_checkpoint(clip).weights)
    return {f"vision.{name}": tensor for name, tensor in tower.items()}


def _head_width(checkpoint: Checkpoint) -> int | None:
    """Return the head width, from the rotary constant or the settings stored beside the weights."""
    width = checkpoint.settings.get("decoder_embed_dim")
    heads = checkpoint.settings.get("decoder_attention_heads")
    stored = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None
    return convert.head_width(checkpoint.weights) or stored


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}

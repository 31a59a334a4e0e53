"""`kg models verify`: whether a model folder is whole, fits its sizes, and is what was once written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError, MissingError
from kgcli.model.source import expected_weights, stage_of
from kgcli.model.weights import check_weights
from kgcli.modelfolder import WEIGHTS_NAME, open_model, weight_shapes
from kgcli.weights.record import differing_files, read_record


def verify(model: str) -> Iterator[str]:
    """Check a model folder, or the pulled model of a name; yields one line for each thing that is as it should be.

    Raises: MissingError, IncompatibleError at the first that is not.
    """
    folder = open_model(model, with_decoder=False, with_aligner=False)
    yield f"tokenizer: {folder.cfg.mllm.vocab_size:,} ids"
    yield _check_shapes(folder.path, folder.cfg)
    record = read_record(folder.path)
    if record is None:
        yield "sha256: not recorded, as the folder was not made by `kg convert` or `kg models pull`"
        return
    faults = differing_files(folder.path, record)
    if faults:
        raise MissingError(f"{folder.path} is not what was written: {'; '.join(faults)}. Fetch or convert it again")
    yield f"sha256: {len(record['files'])} files are as they were written"
    source = record["source"]
    if "sha256" in source:
        named = "/".join(source[key] for key in ("repository", "file") if key in source)
        yield f"made of: {named}, sha256 {source['sha256']}"


def _check_shapes(folder: Path, cfg: ModelConfig) -> str:
    found = {name: torch.Size(shape) for name, shape in weight_shapes(folder, WEIGHTS_NAME).items()}
    if not found:
        raise IncompatibleError(f"{folder} holds no weights")
    stage = stage_of(found)
    expected = {name: tensor.shape for name, tensor in expected_weights(cfg, stage).items()}
    check_weights(expected, found, source=str(folder))
    number = sum(shape.numel() for shape in found.values())
    return f"weights: {stage}, {len(found)} tensors, {number:,} parameters"

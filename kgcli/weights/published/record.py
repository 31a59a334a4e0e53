"""A model folder's record of its origin and the sha256 of its files: writing and verification."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights.folder import WEIGHTS_NAME, open_model, weight_shapes
from kgcli.weights.hub import sha256_of
from kgcli.weights.published.checkpoint import expected_weights, stage_of
from kgcli.weights.safetensors import check_weights

RECORD_NAME = "weights.json"
UNRECORDED = (RECORD_NAME, "README.md")  # the card may be edited


def write_record(folder: Path, source: Mapping[str, Any]) -> None:
    """Hash the files of a model folder and record the source it was converted from."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    content = {
        "source": dict(source),
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in files.items()
            if name not in UNRECORDED
        },
    }
    (folder / RECORD_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder, or None if it has none.

    Raises: MissingError if it is damaged.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if not all(isinstance(entry["sha256"], str) for entry in content["files"].values()):
            raise TypeError
        dict(content["source"])
        return dict(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MissingError(f"{path} is damaged; fetch or convert the model again") from None


def differing_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """List the files that are missing or differ from the record, each with the reason."""
    faults = []
    for name, entry in record["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != entry["sha256"]:
            faults.append(f"{name} has another sha256 than when it was written")
    return faults


def verify(model: str) -> Iterator[str]:
    """Check a model folder or a pulled model; yield one line for each passed check.

    Raises: MissingError, IncompatibleError at the first failed check.
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

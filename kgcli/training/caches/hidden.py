"""A run's hidden states: the frozen MLLM's for every row of its source, computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgcli.data.batch import Collator
from kgcli.data.hidden import IMAGES, HiddenStates, image_digest
from kgcli.data.pool import new_array
from kgcli.data.prompt import pad_sequences
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError
from kgcli.files import make_folder, write_whole
from kgcli.model.kosmosg import KosmosG
from kgcli.training.caches.moments import MADE_OF, read_made_of
from kgcli.training.logging import say
from kgcli.training.parallel import OneProcess
from kgcli.training.precision import autocast

BATCH = 64  # rows encoded at once


@dataclass(frozen=True)
class _Texts:
    """The words of all rows of a source, and digests of their images; none where the MLLM sees no images."""

    tokens: Tensor  # (N, L)
    mask: Tensor  # (N, L)
    image_mask: Tensor  # (N, L)
    digests: NDArray[Any]  # (N,) or (0,)


def make_hidden(
    folder: Path,
    source: Source,
    collator: Collator,
    model: KosmosG,
    processes: OneProcess,
    device: torch.device,
    precision: str,
) -> HiddenStates:
    """Return the cached hidden states in a folder, computed now unless they are of these words, images and weights.

    Raises:
        ConfigError: the MLLM or the resampler has dropout, which a cache would leave out.
        KgError: a row cannot be read.
    """
    sees = "images" in collator.needs
    for name, dropout in (("mllm", model.mllm.dropout.p), ("resampler", model.cfg.resampler.dropout if sees else 0)):
        if dropout > 0:
            raise ConfigError(f"data.hidden: the {name} has dropout, also while frozen; set model.{name}.dropout to 0")
    if processes.is_main:
        texts = _texts(source, collator)
        made_of = {
            "tokens": _sha256({"tokens": texts.tokens}),
            "mllm": _sha256(model.mllm.state_dict()),
            "precision": precision,
        }
        if sees:
            made_of["images"] = hashlib.sha256(texts.digests.tobytes()).hexdigest()
            made_of["vision"] = _sha256({**model.vision.state_dict(), **model.resampler.state_dict()})
        if read_made_of(folder) != made_of:
            with torch.no_grad(), autocast(device, precision):
                _fill(folder, texts, source, collator, model, device, precision)
            write_whole(folder / MADE_OF, json.dumps(made_of, indent=2) + "\n")
    processes.wait()
    return HiddenStates(folder)


def _texts(source: Source, collator: Collator) -> _Texts:
    """Return tokens, masks and images' digests of all rows."""
    assert source.num_rows is not None and collator.tokenizer is not None
    rows, digests = [], []
    for row in range(source.num_rows):
        sample = source.read(row)
        rows.append(collator.encode(sample))
        if "images" in collator.needs:
            digests.append(image_digest(collator.squares(sample)))
    return _Texts(*pad_sequences(rows, collator.tokenizer.special_ids.pad), np.array(digests, np.int64))


def _fill(
    folder: Path,
    texts: _Texts,
    source: Source,
    collator: Collator,
    model: KosmosG,
    device: torch.device,
    precision: str,
) -> None:
    make_folder(folder)
    (folder / MADE_OF).unlink(missing_ok=True)  # incomplete until the last row is written
    (folder / IMAGES).unlink(missing_ok=True)
    kept = np.float32 if precision == "fp32" else np.float16
    hidden = new_array(folder / "hidden.npy", kept, (*texts.tokens.shape, model.cfg.mllm.width))
    for first in range(0, len(texts.tokens), BATCH):
        rows = slice(first, first + BATCH)
        tokens, mask, image_mask = (one[rows].to(device) for one in (texts.tokens, texts.mask, texts.image_mask))
        images = _images(source, collator, range(len(texts.tokens))[rows]).to(device) if len(texts.digests) else None
        hidden[rows] = model.hidden(tokens, mask, image_mask, images).float().cpu().numpy()
        if first % (100 * BATCH) == 0 and first:
            say(f"encoded {first} of {len(texts.tokens)} texts")
    hidden.flush()
    new_array(folder / "tokens.npy", np.int64, tuple(texts.tokens.shape))[:] = texts.tokens.numpy()
    if len(texts.digests):
        new_array(folder / IMAGES, np.int64, texts.digests.shape)[:] = texts.digests


def _images(source: Source, collator: Collator, rows: range) -> Tensor:
    """Return the images of rows as the vision tower reads them, (N, 3, S, S)."""
    pixels = dataclasses.replace(collator, needs=frozenset({"images"}), hidden=None, uint8=False)
    images = pixels([source.read(row) for row in rows], list(rows)).images
    assert images is not None
    return images


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

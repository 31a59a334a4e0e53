"""A run's hidden states: the frozen MLLM's for every row of its source, computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
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
from kgcli.data.sample import Sample
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError, PromptError
from kgcli.files import make_folder, write_whole
from kgcli.model.kosmosg import KosmosG
from kgcli.recipe import DataConfig
from kgcli.training.caches.moments import MADE_OF, read_made_of
from kgcli.training.logging import say
from kgcli.training.parallel import OneProcess
from kgcli.training.precision import autocast
from kgcli.version import __version__

BATCH = 64  # rows encoded at once
SOURCE = "source"  # key of the hash of all that decides the rows
OF_STEPS = {"batch_size", "bucket", "hidden", "max_faults", "moments", "num_workers"}  # settings that change no row
OF_COLLATOR = ("image_size", "vision_size", "vision_fit", "num_slots", "max_tokens", "eos")


@dataclass(frozen=True)
class _Texts:
    """The words of all rows of a source, and digests of their images; none where the MLLM sees no images."""

    tokens: Tensor  # (N, L)
    mask: Tensor  # (N, L)
    image_mask: Tensor  # (N, L)
    digests: NDArray[Any]  # (N,) or (0,)
    too_long: frozenset[int]  # rows that have no words and images here


def make_hidden(
    folder: Path,
    source: Source,
    collator: Collator,
    model: KosmosG,
    processes: OneProcess,
    device: torch.device,
    precision: str,
    data: DataConfig,
) -> HiddenStates:
    """Return the cached hidden states in a folder, computed now unless they are of these words, images and weights.

    A source whose fingerprint tells its words and images is not read again to see that. Where faults are skipped,
    rows that are too long are never trained on, and get the states of no words.

    Raises:
        ConfigError: the MLLM or the resampler has dropout, which a cache would leave out.
        KgError: a row cannot be read.
    """
    sees = "images" in collator.needs
    for name, dropout in (("mllm", model.mllm.dropout.p), ("resampler", model.cfg.resampler.dropout if sees else 0)):
        if dropout > 0:
            raise ConfigError(f"data.hidden: the {name} has dropout, also while frozen; set model.{name}.dropout to 0")
    if processes.is_main:
        made_by = {"mllm": _sha256(model.mllm.state_dict()), "precision": precision}
        if sees:
            made_by["vision"] = _sha256({**model.vision.state_dict(), **model.resampler.state_dict()})
        rows = _rows_key(source, collator, data)
        if rows is None or not _is_complete(folder, {**made_by, SOURCE: rows}, source, collator):
            texts = _texts(source, collator, skips_faults=data.faults == "skip")
            made_of = {**made_by, "tokens": _sha256({"tokens": texts.tokens})}
            if sees:
                made_of["images"] = hashlib.sha256(texts.digests.tobytes()).hexdigest()
            if {**(read_made_of(folder) or {}), SOURCE: rows} != {**made_of, SOURCE: rows}:
                with torch.no_grad(), autocast(device, precision):
                    _fill(folder, texts, source, collator, model, device, precision)
            write_whole(folder / MADE_OF, json.dumps({**made_of, SOURCE: rows}, indent=2) + "\n")
    processes.wait()
    return HiddenStates(folder)


def _rows_key(source: Source, collator: Collator, data: DataConfig) -> str | None:
    """Return a hash of all that decides the words and images of the rows; None where only the rows themselves tell."""
    if not source.tells_rows:
        return None
    assert collator.tokenizer is not None
    decides = {
        "rows": source.fingerprint(),
        "data": data.model_dump(mode="json", exclude=OF_STEPS),
        "collator": {name: getattr(collator, name) for name in OF_COLLATOR},
        "needs": sorted(collator.needs),
        "tokenizer": collator.tokenizer.sha256,
        "kgcli": __version__,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _is_complete(folder: Path, made_of: Mapping[str, str], source: Source, collator: Collator) -> bool:
    """Tell whether a cache was made of these rows and weights, and still has the words and images of the first row."""
    known = read_made_of(folder)
    if known is None or not made_of.items() <= known.items():
        return False
    assert collator.tokenizer is not None
    sample = source.read(0)
    try:
        tokens, _, _ = pad_sequences([collator.encode(sample)], collator.tokenizer.special_ids.pad)
        digests = [image_digest(collator.squares(sample))] if "images" in collator.needs else []
        HiddenStates(folder).rows([0], tokens, digests)
    except (PromptError, ConfigError, OSError, ValueError):
        return False
    return True


def _texts(source: Source, collator: Collator, *, skips_faults: bool) -> _Texts:
    """Return tokens, masks and images' digests of all rows. Raises: PromptError for one that is too long."""
    assert source.num_rows is not None and collator.tokenizer is not None
    rows, digests, too_long = [], [], []
    for row in range(source.num_rows):
        sample = source.read(row)
        try:
            rows.append(collator.encode(sample))
        except PromptError:
            if not skips_faults:
                raise
            too_long.append(row)
            sample = Sample()
            rows.append(collator.encode(sample))
        if "images" in collator.needs:
            digests.append(image_digest(collator.squares(sample)))
    padded = pad_sequences(rows, collator.tokenizer.special_ids.pad)
    return _Texts(*padded, np.array(digests, np.int64), frozenset(too_long))


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
        images = None
        if len(texts.digests):
            shown = range(len(texts.tokens))[rows]
            samples = (Sample() if row in texts.too_long else source.read(row) for row in shown)
            images = _images(samples, list(shown), collator).to(device)
        hidden[rows] = model.hidden(tokens, mask, image_mask, images).float().cpu().numpy()
        if first % (100 * BATCH) == 0 and first:
            say(f"encoded {first} of {len(texts.tokens)} texts")
    hidden.flush()
    new_array(folder / "tokens.npy", np.int64, tuple(texts.tokens.shape))[:] = texts.tokens.numpy()
    if len(texts.digests):
        new_array(folder / IMAGES, np.int64, texts.digests.shape)[:] = texts.digests


def _images(samples: Iterable[Sample], rows: list[int], collator: Collator) -> Tensor:
    """Return the images of rows' samples as the vision tower reads them, (N, 3, S, S)."""
    pixels = dataclasses.replace(collator, needs=frozenset({"images"}), hidden=None, uint8=False)
    images = pixels(samples, rows).images
    assert images is not None
    return images


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

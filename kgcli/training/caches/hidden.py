"""A run's hidden states: the frozen MLLM's for every row of its source, computed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kgcli.data.batch import Collator
from kgcli.data.hidden import HiddenStates
from kgcli.data.pool import new_array
from kgcli.data.prompt import pad_sequences
from kgcli.data.sample import Sample
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError, PromptError
from kgcli.files import make_folder, write_whole
from kgcli.model.kosmosg import KosmosG
from kgcli.training.caches.moments import MADE_OF, read_made_of
from kgcli.training.logging import say
from kgcli.training.parallel import OneProcess
from kgcli.training.precision import autocast

BATCH = 64  # rows encoded at once


def make_hidden(
    folder: Path,
    source: Source,
    collator: Collator,
    model: KosmosG,
    processes: OneProcess,
    device: torch.device,
    precision: str,
    *,
    skips_faults: bool = False,
) -> HiddenStates:
    """Return the cached hidden states in a folder, computed now unless they are of these words and this MLLM.

    Args:
        skips_faults: rows that are too long are never trained on, and get the states of no words

    Raises:
        ConfigError: the MLLM has dropout, which a cache would leave out.
        KgError: a row cannot be read.
    """
    if model.mllm.dropout.p > 0:
        raise ConfigError("data.hidden: the MLLM has dropout, also while it is frozen; set model.mllm.dropout to 0")
    if processes.is_main:
        tokens, mask = _tokens(source, collator, skips_faults=skips_faults)
        made_of = {
            "tokens": _sha256({"tokens": tokens}),
            "mllm": _sha256(model.mllm.state_dict()),
            "precision": precision,
        }
        if read_made_of(folder) != made_of:
            with torch.no_grad(), autocast(device, precision):
                _fill(folder, tokens, mask, model, device, precision)
            write_whole(folder / MADE_OF, json.dumps(made_of, indent=2) + "\n")
    processes.wait()
    return HiddenStates(folder)


def _tokens(source: Source, collator: Collator, *, skips_faults: bool) -> tuple[Tensor, Tensor]:
    """Return tokens and token mask of all rows."""
    assert source.num_rows is not None and collator.tokenizer is not None
    rows = []
    for row in range(source.num_rows):
        try:
            rows.append(collator.encode(source.read(row)))
        except PromptError:
            if not skips_faults:
                raise
            rows.append(collator.encode(Sample()))
    tokens, mask, _ = pad_sequences(rows, collator.tokenizer.special_ids.pad)
    return tokens, mask


def _fill(folder: Path, tokens: Tensor, mask: Tensor, model: KosmosG, device: torch.device, precision: str) -> None:
    make_folder(folder)
    (folder / MADE_OF).unlink(missing_ok=True)  # incomplete until the last row is written
    kept = np.float32 if precision == "fp32" else np.float16
    hidden = new_array(folder / "hidden.npy", kept, (*tokens.shape, model.cfg.mllm.width))
    for first in range(0, len(tokens), BATCH):
        rows = slice(first, first + BATCH)
        given = tokens[rows].to(device), mask[rows].to(device)
        hidden[rows] = model.hidden(*given, torch.zeros_like(given[1])).float().cpu().numpy()
        if first % (100 * BATCH) == 0 and first:
            say(f"encoded {first} of {len(tokens)} texts")
    hidden.flush()
    new_array(folder / "tokens.npy", np.int64, tuple(tokens.shape))[:] = tokens.numpy()


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

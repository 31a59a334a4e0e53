"""Hidden states of a frozen MLLM for a source's finite rows, cached on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kgcli.errors import ConfigError


class HiddenStates:
    """The hidden states of every row, padded to the longest; those of pads too, which a loss may count.

    Exact for a batch of any padded length: a causal model's states do not depend on what follows.

    Args:
        folder: with tokens.npy, (N, L) token ids, and hidden.npy, (N, L, D)
    """

    def __init__(self, folder: Path) -> None:
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.hidden = np.load(folder / "hidden.npy", mmap_mode="r")

    def rows(self, indices: list[int], tokens_BT: Tensor) -> Tensor:
        """Return the hidden states of rows, (B, L, D).

        Args:
            tokens_BT: of the samples, right-padded, to see that they are those of the rows

        Raises: ConfigError where a sample says something else than its row did.
        """
        known, length = self.tokens[indices], tokens_BT.shape[1]
        if length > known.shape[1] or not np.array_equal(known[:, :length], tokens_BT.numpy()):
            raise ConfigError(
                "data.hidden: the words of a row change from sample to sample, so their hidden states cannot be "
                "cached; set data.keep, which keeps them, or leave data.hidden out"
            )
        return torch.from_numpy(self.hidden[indices].astype(np.float32))

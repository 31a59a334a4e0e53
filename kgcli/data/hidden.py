"""Hidden states of a frozen MLLM for a source's finite rows, cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kgcli.errors import ConfigError

IMAGES = "images.npy"


class HiddenStates:
    """The hidden states of every row, padded to the longest; those of pads too, which a loss may count.

    Exact for a batch of any padded length: a causal model's states do not depend on what follows.

    Args:
        folder: with tokens.npy, (N, L) token ids, hidden.npy, (N, L, D), and where the MLLM sees images too
            images.npy, (N,) `image_digest` of each row
    """

    def __init__(self, folder: Path) -> None:
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.hidden = np.load(folder / "hidden.npy", mmap_mode="r")
        self.images = np.load(folder / IMAGES) if (folder / IMAGES).is_file() else None

    def rows(self, indices: list[int], tokens_BT: Tensor, digests: list[int]) -> Tensor:
        """Return the hidden states of rows, (B, L, D).

        Args:
            tokens_BT: of the samples, right-padded, to see that they are those of the rows
            digests: `image_digest` of each sample; none where the MLLM sees no images

        Raises: ConfigError where a sample says or shows something else than its row did.
        """
        known, length = self.tokens[indices], tokens_BT.shape[1]
        alike = length <= known.shape[1] and np.array_equal(known[:, :length], tokens_BT.numpy())
        if not alike or (self.images is not None and self.images[indices].tolist() != digests):
            what = "words" if not alike else "images"
            raise ConfigError(
                f"data.hidden: the {what} of a row change from sample to sample, so their hidden states cannot be "
                "cached; set data.keep, which keeps them, or leave data.hidden out"
            )
        return torch.from_numpy(self.hidden[indices].astype(np.float32))


def image_digest(squares: Sequence[Image.Image]) -> int:
    """Return 63 bits that tell the images of a sample, as the vision tower reads them, from others."""
    digest = hashlib.blake2b(digest_size=8)
    for square in squares:
        digest.update(square.tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1

"""VAE moments of a source's finite rows, cached on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import Dataset

from kgcli.data.images import to_vae_pixels
from kgcli.data.sources.base import Source
from kgcli.errors import KgError


class Pool:
    """VAE moments and subject masks of a finite pool of images, on disk, encoded once.

    Exact, because resizing a target is deterministic; worth it, because encoding costs a fifth of a U-Net step.
    """

    def __init__(self, folder: Path) -> None:
        self.moments = np.load(folder / "moments.npy", mmap_mode="r")
        self.subject = np.load(folder / "subject.npy", mmap_mode="r")

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the moments and masks of the images at `indices`."""
        return {
            "moments": torch.from_numpy(self.moments[indices].astype(np.float32)),
            "subject": torch.from_numpy(self.subject[indices].astype(np.float32) / 255.0),
        }

    @classmethod
    def create(cls, folder: Path, num: int, moments_shape: tuple[int, ...]) -> tuple[np.memmap, np.memmap]:
        """Create empty files under temporary names, to be filled; `finish` makes them a pool."""
        folder.mkdir(parents=True, exist_ok=True)
        moments = open_memmap(folder / "moments.npy.partial", "w+", np.float16, (num, *moments_shape))
        subject = open_memmap(folder / "subject.npy.partial", "w+", np.uint8, (num, *moments_shape[1:]))
        return moments, subject

    @classmethod
    def finish(cls, folder: Path) -> Pool:
        """Rename filled files to their final names; moments last, as their presence marks a complete pool."""
        for name in ("subject.npy", "moments.npy"):
            (folder / (name + ".partial")).replace(folder / name)
        return cls(folder)


class PoolImages(Dataset[tuple[Tensor, Tensor] | KgError]):
    """The target of every row of a source, as VAE input and subject mask; a target that cannot be read is an error."""

    def __init__(self, source: Source, image_size: int, latent_size: int) -> None:
        assert source.num_rows is not None
        self.source = source
        self.num_rows = source.num_rows
        self.image_size = image_size
        self.latent_size = latent_size

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor] | KgError:
        try:
            target = self.source.read(row).render(self.image_size)
        except KgError as error:  # as a value: torch would wrap it in a worker's traceback
            return error
        size = (self.latent_size, self.latent_size)
        masks = [np.asarray(mask.resize(size)) for mask in target.masks] or [np.zeros(size, np.uint8)]
        pixels = torch.from_numpy(to_vae_pixels(target.image, self.image_size))
        return pixels, torch.from_numpy(np.max(masks, axis=0))


def collate_pool(items: list[tuple[Tensor, Tensor] | KgError]) -> tuple[Tensor, Tensor] | KgError:
    """Stack targets and masks; the first error takes the place of its batch."""
    found = []
    for item in items:
        if isinstance(item, KgError):
            return item
        found.append(item)
    pixels, masks = zip(*found, strict=True)
    return torch.stack(pixels), torch.stack(masks)

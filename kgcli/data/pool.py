"""VAE moments of a source's finite rows, cached on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kgcli.data.images import to_vae_pixels
from kgcli.data.sources.base import Part, Source
from kgcli.errors import KgError
from kgcli.files import make_folder, output_errors


class Pool:
    """VAE moments and subject masks of a finite pool of images, on disk, encoded once.

    Exact, because resizing a target is deterministic; worth it, because encoding costs a fifth of a U-Net step.

    Args:
        folders: of the parts of a source, in the order of their rows
    """

    def __init__(self, *folders: Path) -> None:
        self._moments = [np.load(folder / "moments.npy", mmap_mode="r") for folder in folders]
        self._subject = [np.load(folder / "subject.npy", mmap_mode="r") for folder in folders]
        self._starts = np.cumsum([0, *map(len, self._moments)])

    @property
    def moments(self) -> NDArray[np.float16]:
        """All moments, (N, 2C, H, W)."""
        return np.concatenate(self._moments)

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the moments and masks of the images at `indices`."""
        moments, subject = (self._take(arrays, indices) for arrays in (self._moments, self._subject))
        return {
            "moments": torch.from_numpy(moments.astype(np.float32)),
            "subject": torch.from_numpy(subject.astype(np.float32) / 255.0),
        }

    def _take(self, arrays: list[NDArray[Any]], indices: list[int]) -> NDArray[Any]:
        if len(arrays) == 1:
            return arrays[0][indices]
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        return np.stack([arrays[part][row - self._starts[part]] for part, row in zip(parts, indices, strict=True)])

    @classmethod
    def create(cls, folder: Path, num: int, moments_shape: tuple[int, ...]) -> tuple[np.memmap, np.memmap]:
        """Create empty files under temporary names, to be filled; `finish` makes them a pool."""
        make_folder(folder)
        moments = new_array(folder / "moments.npy.partial", np.float16, (num, *moments_shape))
        subject = new_array(folder / "subject.npy.partial", np.uint8, (num, *moments_shape[1:]))
        return moments, subject

    @classmethod
    def finish(cls, folder: Path) -> None:
        """Rename filled files to their final names; moments last, as their presence marks a complete pool."""
        for name in ("subject.npy", "moments.npy"):
            (folder / (name + ".partial")).replace(folder / name)


def new_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Create an array in a file, with room for all of it on the disk: writing to a full one would end the process.

    Raises: OutputError.
    """
    with output_errors(path):
        array = open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


class PoolImages(Dataset[tuple[Tensor, Tensor] | KgError]):
    """The targets of a part of a source, as VAE input and subject mask; one that cannot be read is an error."""

    def __init__(self, source: Source, part: Part, image_size: int, latent_size: int) -> None:
        self.source = source
        self.part = part
        self.image_size = image_size
        self.latent_size = latent_size

    def __len__(self) -> int:
        return self.part.num_rows

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor] | KgError:
        try:
            target = self.source.read(self.part.first + place).render(self.image_size)
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

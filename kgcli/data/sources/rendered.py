"""Images of the nano world, rendered once to a folder that several recipes can use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kgcli.data.pool import new_array
from kgcli.data.sample import Sample, Target
from kgcli.data.signals import leave_signals_to_parent
from kgcli.data.sources.base import DerivedSource, Source
from kgcli.errors import ConfigError, KgError
from kgcli.files import locked, output_errors, write_whole

MADE_OF = "made_of.json"
CAPTIONS = "captions.jsonl"  # `_WORDING`, then a line per row: the captions of its image
_WORDING = "2"  # version of the world's captions: those of another are not read
_PARTIAL = "partial.json"  # what is being rendered, and how many images are done
_MASK_FACTOR = 4  # pixels of the image for one of a mask, across and down
NUM_CAPTIONS = 2  # of an image: its first two samples'; drawing a scene again for other words takes a loader 2 ms
_CAPTIONED = {"caption", "target", "truth"}  # fields of captioned images: the folder holds all that training reads
_CHUNK = 64  # images between two notes of how many are done


@dataclass(frozen=True)
class _Render:
    """The target of a row, read from the folder if it is there at this size, else rendered."""

    folder: Path
    row: int
    otherwise: Callable[[int], Target]

    def __call__(self, size: int) -> Target:
        if not (self.folder / MADE_OF).is_file():
            return self.otherwise(size)
        images = np.load(self.folder / "images.npy", mmap_mode="r")  # (N, S, S, 3) uint8
        if images.shape[1] != size:
            return self.otherwise(size)
        masks = np.load(self.folder / "masks.npy", mmap_mode="r")  # (N, S / 4, S / 4) uint8
        image, mask = (Image.fromarray(np.array(values[self.row])) for values in (images, masks))
        return Target(image, (mask,))


class RenderedSource(DerivedSource):
    """A finite source whose targets are read from a folder of rendered images, once `make_rendered` has filled it.

    Their pixels are those of the source; of the subjects' masks there is one, at a quarter of the size, so that the
    weight of pixels at a subject's edge differs slightly. Where samples are captioned images and no more, their
    captions are read from the folder too: each image has NUM_CAPTIONS, which come again.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source)
        self.folder = folder
        self.gives = source.gives - {"truth"} if source.gives == _CAPTIONED else source.gives
        self._captions: list[list[str]] = []  # of each row, once they are read
        self.read_captions()

    def sample(self, index: int) -> Sample:
        """Return the sample at `index`."""
        row = self.row_of(index)
        captions = self._captions
        if not captions:
            return self._with_target(self.source.sample(index), row)
        assert self.num_rows is not None
        words = captions[row][index // self.num_rows % len(captions[row])]
        return Sample(caption=words, target=_Render(self.folder, row, partial(_drawn, self.source, row)))

    def read_captions(self) -> None:
        """Read the captions of a filled folder, if it has those of this source, once: before loaders start."""
        place = self.folder / CAPTIONS
        if (
            not self._captions
            and self.source.gives == _CAPTIONED
            and (self.folder / MADE_OF).is_file()
            and place.is_file()
        ):
            wording, *lines = place.read_text("utf-8").splitlines() or [""]
            if wording == _WORDING and len(lines) == self.num_rows:
                self._captions = [json.loads(line) for line in lines]

    def read(self, row: int) -> Sample:
        """Return a sample that shows `row`."""
        return self._with_target(self.source.read(row), row)

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield nothing: samples of the world are never bad."""
        return iter(())

    def _with_target(self, sample: Sample, row: int) -> Sample:
        return sample if sample.target is None else replace(sample, target=_Render(self.folder, row, sample.target))


def _drawn(source: Source, row: int, size: int) -> Target:
    return source.read(row).render(size)


class _Renders(Dataset[tuple[Tensor, Tensor, list[str]]]):
    """Images of a source's rows from `start` on, the fraction of each mask cell that subjects cover, and captions."""

    def __init__(self, source: Source, size: int, start: int) -> None:
        assert source.num_rows is not None
        self.source, self.size, self.start, self.end = source, size, start, source.num_rows

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, list[str]]:
        row = self.start + place
        num = 1 if "fragments" in self.source.gives else NUM_CAPTIONS  # prompts would render their images again
        samples = [self.source.sample(row + number * self.end) for number in range(num)]
        target = samples[0].render(self.size)
        mask = np.max([np.asarray(mask) for mask in target.masks], axis=0)
        side = self.size // _MASK_FACTOR
        small = mask.reshape(side, _MASK_FACTOR, side, _MASK_FACTOR).mean((1, 3)).astype(np.uint8)
        words = [sample.caption for sample in samples]
        return torch.from_numpy(np.array(target.image)), torch.from_numpy(small), words


def _collate(rows: list[tuple[Tensor, Tensor, list[str]]]) -> tuple[Tensor, Tensor, list[list[str]]]:
    images, masks, captions = zip(*rows, strict=True)
    return torch.stack(images), torch.stack(masks), list(captions)


def make_rendered(
    folder: Path, source: Source, size: int, *, num_workers: int = 0, report: Callable[[str], object] = print
) -> None:
    """Render all rows of a source of the nano world, from where an interrupted call stopped, unless they are there.

    Raises:
        ConfigError: not all samples have a target, or the folder holds the images of another source.
        BusyError: another process renders them.
    """
    if "target" not in source.gives:
        raise ConfigError("data.rendered: not all samples of this recipe's kinds have an image to be generated")
    if size % _MASK_FACTOR:
        raise ConfigError(f"data.rendered needs an image_size that is a multiple of {_MASK_FACTOR}; it is {size}")
    made_of = {**source.fingerprint(), "image_size": size}
    with locked(folder):
        if (folder / MADE_OF).is_file():
            if _read(folder / MADE_OF) != made_of:
                raise ConfigError(
                    f"{folder} holds images of another source or seed; "
                    "name another folder in data.rendered, or remove it"
                )
            return
        _fill(folder, _Renders(source, size, _done(folder, made_of)), made_of, num_workers, report)
        for name in ("images.npy", "masks.npy", CAPTIONS):
            (folder / (name + ".partial")).replace(folder / name)
        write_whole(folder / MADE_OF, json.dumps(made_of, indent=2) + "\n")
        (folder / _PARTIAL).unlink(missing_ok=True)


def _fill(
    folder: Path, renders: _Renders, made_of: dict[str, Any], num_workers: int, report: Callable[[str], object]
) -> None:
    place, num, size = renders.start, renders.end, renders.size
    shapes = {"images": (num, size, size, 3), "masks": (num, size // _MASK_FACTOR, size // _MASK_FACTOR)}
    files = {
        name: open_memmap(folder / f"{name}.npy.partial", "r+")
        if place
        else new_array(folder / f"{name}.npy.partial", np.uint8, shape)
        for name, shape in shapes.items()
    }
    captions = folder / (CAPTIONS + ".partial")
    if place:
        _keep_lines(captions, 1 + place)
    else:
        write_whole(captions, _WORDING + "\n")
    workers: dict[str, Any] = {"num_workers": num_workers, "worker_init_fn": leave_signals_to_parent}
    for images, masks, words in DataLoader(renders, batch_size=_CHUNK, collate_fn=_collate, **workers):
        rows = slice(place, place + len(images))
        files["images"][rows], files["masks"][rows] = images.numpy(), masks.numpy()
        with output_errors(captions), captions.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in words)
        place += len(images)
        write_whole(folder / _PARTIAL, json.dumps({"made_of": made_of, "done": place}))
        if place % (100 * _CHUNK) == 0:
            report(f"rendered {place} of {num} images")
    for file in files.values():
        file.flush()


def _keep_lines(path: Path, num: int) -> None:
    """Cut a file to its first `num` lines: an interrupted call may have written more than it noted."""
    write_whole(path, "".join(path.read_text("utf-8").splitlines(keepends=True)[:num]))


def _done(folder: Path, made_of: dict[str, Any]) -> int:
    """Return the number of images of the same rows that an interrupted call has rendered."""
    left = _read(folder / _PARTIAL)
    whole = all((folder / f"{name}.partial").is_file() for name in ("images.npy", "masks.npy", CAPTIONS))
    if not whole or left.get("made_of") != made_of or "done" not in left:
        return 0
    done, lines = int(left["done"]), (folder / (CAPTIONS + ".partial")).read_text("utf-8").splitlines()
    return done if lines[:1] == [_WORDING] and len(lines) > done else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}

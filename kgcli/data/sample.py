"""One training example before it becomes tensors: the one interface between sources, loaders and collators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from kgcli.errors import ConfigError

Fragments = tuple[str | None, ...]  # texts and, as None, images in reading order


@dataclass(frozen=True)
class Target:
    """An image to be generated, with a mask in [0, 255] for each subject where these are known."""

    image: Image.Image
    masks: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """The target of a sample that has one size, whatever size is asked for."""

    target: Target

    def __call__(self, size: int) -> Target:
        return self.target


@dataclass(frozen=True)
class Fault:
    """A row that could not be read, so that a sample shows another in its place."""

    file: str  # path or URL
    row: str  # key, line or number within the file
    reason: str
    passing: bool = False  # of a server or network: the row may be read the next time


@dataclass(frozen=True)
class Sample:
    """A training example.

    `fragments` is what the multimodal model reads (None stands for the next of `images`), `caption` what a CLIP text
    encoder reads. `target` renders or decodes the image to be generated when it is needed, given a size in pixels that
    a source may use as a hint. `origin` names the file and line for messages; `truth` is a source's own ground truth of
    the sample, opaque to everything but stages made for that source.
    """

    fragments: Fragments = ()
    images: tuple[Image.Image, ...] = ()
    caption: str = ""
    target: Callable[[int], Target] | None = None
    origin: str = ""
    truth: Any = None
    faults: tuple[Fault, ...] = ()  # rows that this sample was to show before

    @property
    def words(self) -> str:
        """The text of the fragments, or the caption where there are none."""
        return "".join(part for part in self.fragments if part) or self.caption

    def render(self, size: int) -> Target:
        """Return the image to be generated.

        Raises: ConfigError where the sample has none.
        """
        if self.target is None:
            raise ConfigError(f"{self.origin or 'this kind of sample'} has no image to be generated")
        return self.target(size)

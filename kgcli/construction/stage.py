"""The state of a sample under construction, and the protocol of the stages that it goes through."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of a stage; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass
class Cut:
    """The images of one entity: its square of the whole image, and the same with all but the entity white."""

    crop: Image.Image
    on_white: Image.Image


@dataclass
class Draft:
    """A sample under construction. A stage fills in its part, or drops the sample with a reason."""

    key: str
    origin: str
    image: Image.Image
    caption: str = ""
    whole_size: tuple[int, int] = (0, 0)  # pixels, before the middle square was cut out
    entities: list[tuple[str, tuple[int, int]]] = field(default_factory=list)  # noun, characters in the caption
    cuts: list[Cut | None] = field(default_factory=list)  # one an entity, None where nothing was found
    repeated: str = ""  # what of an earlier sample the data set has again in this one
    dropped: str = ""  # the reason

    def drop(self, reason: str) -> None:
        """Leave the sample out, for a reason that is counted."""
        self.dropped = self.dropped or reason

    def seed(self, number: int) -> int:
        """Return a seed of the sample that depends on its key and a number alone, below 2**63."""
        digest = hashlib.sha256(f"{number}\0{self.key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


class NotTaken(Exception):
    """A sample that a model's processor refuses, as one for images of odd sizes does; the message is why."""


class Stage(Protocol):
    """A step of the construction. `apply` sees a few samples of a shard at a time, those that are still there, and only
    changes those.

    What it gives a sample depends on nothing but the sample and the stage's options and weights, so that a shard
    comes out the same whichever process makes it.
    """

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Fill in a part of each sample, or drop it.

        Raises: NotTaken for a sample that the stage's model cannot take.
        """
        ...


@dataclass(frozen=True)
class Place:
    """The device of a stage, and the local folders of its models."""

    device: str = "cpu"
    folders: dict[str, str] = field(default_factory=dict)  # model as named in the options -> its local folder

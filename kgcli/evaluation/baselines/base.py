"""What every method of a benchmark can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from kgcli.config import SamplingConfig
from kgcli.evaluation.plan import Item


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What a user may say to any method; None leaves it to the method."""

    model: str | None = None
    decoder: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    sampling: SamplingConfig = SamplingConfig()
    negative_prompt: str = ""
    extra: tuple[tuple[str, str], ...] = ()  # name=value pairs of the method's own (--set)


class Method(Protocol):
    """Makes pictures for items. One object serves a whole process; it may load its weights late.

    It may also have `check(items)`, which is called with all items before a run is begun and raises a KgError that
    names the first it cannot draw.
    """

    name: str

    def __init__(self, options: MethodOptions) -> None: ...

    def facts(self) -> dict[str, Any]:
        """What identifies it: name, settings with defaults filled in, hashes of weights. JSON; no paths, no device."""
        ...

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Learn one subject before its items are drawn (Textual Inversion, DreamBooth); others do nothing.

        What is learnt goes to `folder`, which is the subject's own and is whole or absent; called again for a subject
        that is learnt, it returns at once.
        """
        ...

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """A picture for each item of one unit: the same items give the same pixels, whatever was drawn before."""
        ...

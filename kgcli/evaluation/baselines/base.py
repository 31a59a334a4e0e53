"""The interface of a benchmark's methods."""

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
    """Options that every method takes; None leaves the choice to the method."""

    model: str | None = None
    decoder: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    sampling: SamplingConfig = SamplingConfig()
    negative_prompt: str = ""
    extra: tuple[tuple[str, str], ...] = ()  # the method's own settings as (name, value) pairs (--set)


class Method(Protocol):
    """Generate images for items. One object serves a whole process and may load its weights lazily.

    It may also have `check(items)`, which is called with all items before a run starts and raises a KgError that names
    the first item it cannot generate.
    """

    name: str

    def __init__(self, options: MethodOptions) -> None: ...

    def facts(self) -> dict[str, Any]:
        """Return its fingerprint as JSON values: name, all settings, hashes of weights; no paths, no device."""
        ...

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Learn one subject before its items are generated (Textual Inversion, DreamBooth); others do nothing.

        The result goes to `folder`, which holds this subject only and is complete or absent; a subject that has been
        learnt returns at once.
        """
        ...

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Return an image per item of one unit: the same items give the same pixels, whatever was generated before."""
        ...

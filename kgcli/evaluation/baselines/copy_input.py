"""The input picture itself as a method: what a metric gives for drawing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.settings import check_sampling
from kgcli.evaluation.plan import Item


class CopyInput:
    """The first picture of the prompt, made no larger than a drawn one would be."""

    name = "copy-input"

    def __init__(self, options: MethodOptions) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")
        check_sampling(options.sampling)  # it draws nothing, and yet a typing error should not go unnoticed
        self.size = options.sampling.width

    def facts(self) -> dict[str, Any]:
        """Its name and size."""
        return {"name": self.name, "size": self.size}

    def check(self, items: Sequence[Item]) -> None:
        """Prompts without a picture are found. Raises: UsageError."""
        if not all(item.inputs for item in items):
            raise UsageError(f"{self.name} needs a picture in each prompt; this suite has prompts of words alone")

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Nothing is learnt."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Copies."""
        return [self._copy(data / item.inputs[0]) for item in items]

    def _copy(self, path: Path) -> Image.Image:
        picture = open_image(path, srgb=False)
        if self.size is not None:
            picture.thumbnail((self.size, self.size), Image.Resampling.BICUBIC)
        return picture

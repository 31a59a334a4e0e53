"""The input image itself as a method: the score of generating nothing."""

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
    """The first image of the prompt, no larger than a generated one would be."""

    name = "copy-input"

    def __init__(self, options: MethodOptions) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")
        check_sampling(options.sampling)  # unused, but a typing error should not go unnoticed
        self.size = options.sampling.width

    def facts(self) -> dict[str, Any]:
        """Return its name and size."""
        return {"name": self.name, "size": self.size}

    def check(self, items: Sequence[Item]) -> None:
        """Check that every prompt has an image. Raises: UsageError."""
        if not all(item.inputs for item in items):
            raise UsageError(f"{self.name} needs an image in each prompt; this suite has text-only prompts")

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Do nothing: this method does not learn."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Return copies of the first inputs."""
        return [self._copy(data / item.inputs[0]) for item in items]

    def _copy(self, path: Path) -> Image.Image:
        image = open_image(path, srgb=False)
        if self.size is not None:
            image.thumbnail((self.size, self.size), Image.Resampling.BICUBIC)
        return image

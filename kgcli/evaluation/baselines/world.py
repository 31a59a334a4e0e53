"""The nano world itself as a method: what the right pictures score, and those of other individuals. Nano suites only.

`--method kgcli.evaluation.baselines.world:Truth` draws the ceiling, `...:Other` the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.benchmarks.nano import COCO, DREAMBENCH, SIZE, VERSION, spec_of, subjects
from kgcli.evaluation.benchmarks.skills import other_subject
from kgcli.evaluation.run.folder import Item
from kgcli.world.spec import Spec, render


class Truth:
    """A true render of what is asked: its place in the picture and its background are of the item's seed."""

    name = "truth"

    def __init__(self, options: MethodOptions) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")

    def facts(self) -> dict[str, Any]:
        """Its name and the version of the suites."""
        return {"name": self.name, "version": VERSION}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Items of other suites are found. Raises: UsageError."""
        if items[0].inputs and items[0].subject not in subjects():
            raise UsageError(f"the method {self.name} draws the nano suites alone; give --suite nano")

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Renders."""
        return [render(self.spec(item), SIZE).picture for item in items]

    def spec(self, item: Item) -> Spec:
        """What the picture of an item shows."""
        return spec_of(item, DREAMBENCH if item.inputs else COCO)


class Other(Truth):
    """The same of individuals of another noun."""

    name = "other"

    def spec(self, item: Item) -> Spec:
        """What the picture of an item shows."""
        return other_subject(super().spec(item), np.random.default_rng([25, VERSION, item.seed]))

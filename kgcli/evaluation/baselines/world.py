"""References of the nano world as methods: true images, those of other instances, and what the VAE makes of them.

`--method kgcli.evaluation.baselines.world:Truth` generates the ceiling, `...:Other` the floor. Nano suites only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kgcli.data.images import to_vae_pixels
from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.benchmarks.nano import BASE_NOUNS, COCO, DREAMBENCH, SIZE, VERSION, spec_of, subjects
from kgcli.evaluation.benchmarks.skills import case_of, is_skill
from kgcli.evaluation.metrics.recognition import other_subject
from kgcli.evaluation.plan import Item
from kgcli.world.spec import Spec, render

if TYPE_CHECKING:
    from kgcli.inference.model import Model


class Truth:
    """A true render of what is asked: its place in the image and its background are of the item's seed."""

    name = "truth"

    def __init__(self, options: MethodOptions) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")

    def facts(self) -> dict[str, Any]:
        """Its name and the version of the suites."""
        return {"name": self.name, "version": VERSION}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Items of other suites are found. Raises: UsageError."""
        if items[0].inputs and items[0].subject not in subjects() and not is_skill(items[0]):
            raise UsageError(f"the method {self.name} draws the nano suites alone; give --suite nano")

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Renders."""
        return [render(self.spec(item), SIZE).picture for item in items]

    def spec(self, item: Item) -> Spec:
        """What the image of an item shows."""
        return case_of(item).spec if is_skill(item) else spec_of(item, DREAMBENCH if item.inputs else COCO)


class Other(Truth):
    """The same of instances of another noun."""

    name = "other"

    def spec(self, item: Item) -> Spec:
        """What the image of an item shows."""
        rng = np.random.default_rng(item.seed if is_skill(item) else [25, VERSION, item.seed])
        return other_subject(super().spec(item), rng, BASE_NOUNS)


class Reconstruction:
    """The VAE reconstruction of another method's images: the best that the U-Net could do."""

    name = "vae"

    def __init__(self, method: Method, model: Model) -> None:
        self.method = method
        self.model = model

    def facts(self) -> dict[str, Any]:
        """Its name, the method's and the decoder."""
        return {"name": self.name, "of": self.method.facts(), "decoder_sha256": self.model.folder.decoder_sha256}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """What the method learns."""
        self.method.prepare(subject, items, data, folder)

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """One batch."""
        import torch

        from kgcli.model.finite import finite_images

        pipeline = self.model.pipeline
        pixels = np.stack([to_vae_pixels(image, SIZE) for image in self.method.draw(items, data, folder)])
        mean, _ = pipeline.decoder.moments(torch.from_numpy(pixels).to(pipeline.device))
        with finite_images(pipeline.decoder.vae):
            decoded = pipeline.decoder.decode(mean * pipeline.decoder.vae.config.scaling_factor)
        values = (decoded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(value) for value in values]

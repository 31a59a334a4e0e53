"""References of the nano world as methods: true images, those of twins and distractors, and VAE reconstructions.

`--method kgcli.evaluation.baselines.world:Truth` generates the ceiling, `...:Other` the floor, `...:Twin` what words
can tell. Nano suites only.
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
from kgcli.evaluation.benchmarks.nano import BASE_NOUNS, COCO, DREAMBENCH, SEED, spec_of, subjects
from kgcli.evaluation.benchmarks.nano_world import VERSION
from kgcli.evaluation.benchmarks.skills import case_of, is_skill
from kgcli.evaluation.metrics.recognition import distractor_spec, twin_spec
from kgcli.evaluation.plan import Item
from kgcli.world.rendering import render
from kgcli.world.spec import Spec

if TYPE_CHECKING:
    from kgcli.inference.model import Model
    from kgcli.model.diffusion import Diffusion


class Truth:
    """A true render of the prompt; layout and background come from the item's seed."""

    name = "truth"

    def __init__(self, options: MethodOptions) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")

    def facts(self) -> dict[str, Any]:
        """Return its name and the version of the suites."""
        return {"name": self.name, "version": VERSION}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Check that the items are of a nano suite. Raises: UsageError."""
        if items[0].inputs and items[0].subject not in subjects() and not is_skill(items[0]):
            raise UsageError(f"the method {self.name} supports the nano suites only; give --suite nano")

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Render the items."""
        return [render(self.spec(item)).image for item in items]

    def spec(self, item: Item) -> Spec:
        """Return the spec of an item's image."""
        return case_of(item).spec if is_skill(item) else spec_of(item, DREAMBENCH if item.inputs else COCO)


class Other(Truth):
    """A true render in which a distractor of another noun replaces the subject."""

    name = "other"

    def spec(self, item: Item) -> Spec:
        """Return the spec of an item's image."""
        rng = np.random.default_rng(item.seed if is_skill(item) else [25, SEED, item.seed])
        return distractor_spec(super().spec(item), rng, BASE_NOUNS)


class Twin(Truth):
    """A true render of another instance that the same words describe: what words alone tell of an identity."""

    name = "twin"

    def spec(self, item: Item) -> Spec:
        """Return the spec of an item's image."""
        return twin_spec(super().spec(item))


class Reconstruction:
    """The VAE reconstruction of another method's images: the upper bound of the U-Net."""

    name = "vae"

    def __init__(self, method: Method, decoder: Diffusion, sha256: str) -> None:
        self.method = method
        self.decoder = decoder
        self.sha256 = sha256  # of the decoder's weights

    @classmethod
    def of(cls, method: Method, model: Model) -> Reconstruction:
        """Reconstruct by the decoder of a model."""
        return cls(method, model.pipeline.decoder, model.folder.decoder_sha256)

    def facts(self) -> dict[str, Any]:
        """Return its name, the method's fingerprint and the decoder's hash."""
        return {"name": self.name, "of": self.method.facts(), "decoder_sha256": self.sha256}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Prepare the wrapped method."""
        self.method.prepare(subject, items, data, folder)

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Reconstruct one batch."""
        import torch

        from kgcli.model.finite import finite_images

        vae: Any = self.decoder.vae
        pixels = np.stack([to_vae_pixels(image, image.width) for image in self.method.draw(items, data, folder)])
        mean, _ = self.decoder.moments(torch.from_numpy(pixels).to(vae.device))
        with finite_images(vae):
            decoded = self.decoder.decode(mean * vae.config.scaling_factor)
        values = (decoded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(value) for value in values]

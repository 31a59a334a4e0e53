"""The nano world as a source of training samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kgcli.data.sample import Fragments, Sample
from kgcli.data.sources.base import Part
from kgcli.data.sources.world import GIVES, SAMPLERS, draw
from kgcli.errors import ConfigError, KgError
from kgcli.world.tables import SIZE

# At sizes other than SIZE, images and captions once were another renderer's: caches of those are stale.
RENDERER = 2


class WorldSource:
    """The nano world as a source: a mixture of kinds, endless, or over a pool of images with new captions each time.

    Args:
        kinds: kind of sample -> weight
        image_size: pixels of the images that prompts show
        pool: how many images there are; None: a new one per sample
        drop_entity_text: fraction of compositional captions without their entities' nouns
        keep_background: fraction of their reference images that show the scene

    Raises: ConfigError for a kind that does not exist, or weights that are all 0 or negative.
    """

    tells_rows = True

    def __init__(
        self,
        kinds: dict[str, float],
        *,
        seed: int,
        image_size: int,
        pool: int | None = None,
        drop_entity_text: float = 0.5,
        keep_background: float = 0.5,
    ) -> None:
        check_kinds(kinds)
        self.kinds = kinds
        self.seed = seed
        self.image_size = image_size
        self.num_rows = pool
        self.fractions = {"drop_entity_text": drop_entity_text, "keep_background": keep_background}
        self.gives = frozenset.intersection(*(GIVES[kind] for kind, weight in kinds.items() if weight > 0))

    def sample(self, index: int) -> Sample:
        """Return the sample at `index`."""
        return draw(self.kinds, self.seed, index, self.image_size, self.num_rows, **self.fractions)

    def fragments(self, index: int) -> Fragments | None:
        """Return None: a sample's words are made with its images."""
        return None

    def row_of(self, index: int) -> int:
        """Return the image of the pool that a sample shows."""
        return index % self.num_rows if self.num_rows else index

    def read(self, row: int) -> Sample:
        """Return the first sample that shows an image of the pool."""
        return self.sample(row)

    def substitutes(self, index: int, error: KgError) -> Iterator[tuple[Sample, int]]:
        """Yield nothing: samples of the world are never bad."""
        return iter(())

    def texts(self, num: int, seed: int) -> list[str]:
        """Return sentences that hold every word of the world."""
        captions = [draw({"captioned": 1.0}, seed, index, self.image_size).caption for index in range(num)]
        rng = np.random.default_rng(seed)
        mixed = {"edit": 0.5, "compositional": 0.5}
        more = [draw(mixed, seed, int(i), self.image_size) for i in rng.integers(1 << 30, size=num // 10)]
        return captions + [piece for sample in more for piece in sample.fragments if piece]

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the images of the pool."""
        drawn = {"kinds": self.kinds, "seed": self.seed, "num": self.num_rows}
        return drawn if self.image_size == SIZE else {**drawn, "renderer": RENDERER}

    def parts(self) -> list[Part]:
        """Return the pool as one part; none where the source is endless."""
        return [Part(self.fingerprint(), 0, self.num_rows)] if self.num_rows else []


def check_kinds(kinds: dict[str, float]) -> None:
    """Check the kinds and weights of a mixture.

    Raises: ConfigError: a kind does not exist, or the weights are all 0 or negative.
    """
    for name in kinds:
        if name not in SAMPLERS:
            raise ConfigError(f"data.kinds: there is no kind of sample {name!r}; there are {', '.join(SAMPLERS)}")
    if min(kinds.values(), default=0.0) < 0.0 or sum(kinds.values()) <= 0.0:
        raise ConfigError(f"data.kinds: the weights {kinds} must be at least 0, and one of them above")

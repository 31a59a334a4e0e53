"""The nano world's own truth as stages: captions, entities and crops of compositional samples, as an example.

A sample's key ends in its index, as `00012`; seed and size are those of the world's recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from kgcli.construction.stage import Cut, Draft, Options, Place
from kgcli.data.sources.world import draw
from kgcli.errors import UsageError
from kgcli.world import text
from kgcli.world.rendering import crop, render
from kgcli.world.spec import Spec
from kgcli.world.tables import SIZE

KINDS = {"compositional": 1.0}
MAX_CHANGE = 12  # of 255, in the mean: what JPEG and resizing change of an image
_INDEX = re.compile(r"\d+$")


class WorldOptions(Options):
    """Which world."""

    seed: int = Field(default=0, ge=0)
    size: int = Field(default=SIZE, ge=8)  # pixels


class _Oracle:
    options_type = WorldOptions

    def __init__(self, options: WorldOptions, place: Place) -> None:
        self.options = options

    def spec(self, draft: Draft) -> Spec:
        """Return the spec of a draft's image.

        Raises: UsageError if that is no image of a sample, or of another one: of another seed, size or renderer.
        """
        found = _INDEX.search(draft.key)
        if not found:
            raise UsageError(f"{draft.key} is no sample of the nano world: its key does not end in an index")
        spec: Spec = draw(KINDS, self.options.seed, int(found.group()), self.options.size).truth.spec
        shown = render(spec, self.options.size).image.resize(draft.image.size)
        if (
            np.abs(np.asarray(shown, np.float32) - np.asarray(draft.image.convert("RGB"), np.float32)).mean()
            > MAX_CHANGE
        ):
            raise UsageError(
                f"the image of {draft.key} is not what the nano world shows there: seed or size are others, or another "
                "version wrote the shard"
            )
        return spec


class WorldCaptioner(_Oracle):
    """The caption that the world gives a compositional sample."""

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Caption each image."""
        for draft in drafts:
            draft.caption = world_caption(self.spec(draft), draft.seed(self.options.seed))


class WorldExtractor(_Oracle):
    """The entities of a sample where the world's words name them."""

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Place each noun."""
        for draft in drafts:
            start = 0
            for placed in self.spec(draft).subjects:
                noun = placed.subject.noun
                found = re.compile(rf"\b{re.escape(noun)}\b").search(draft.caption, start)
                if found is None:
                    draft.drop("no entity in the caption")
                    break
                draft.entities.append((noun, found.span()))
                start = found.end()


class WorldSegmenter(_Oracle):
    """The world's own crops of its subjects."""

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Cut out each subject."""
        for draft in drafts:
            rendered = render(self.spec(draft), self.options.size)
            draft.cuts = [
                Cut(*(crop(rendered, place, self.options.size, keep_background=keep) for keep in (True, False)))
                for place in range(len(draft.entities))
            ]


def world_caption(spec: Spec, seed: int) -> str:
    """Return a caption of a spec in the words of the world's compositional samples."""
    fragments = text.compositional(spec, np.random.default_rng([51, seed]), drop=False)
    return " ".join("".join(one for one in fragments if one).split())

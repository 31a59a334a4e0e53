"""The base of all training stages: modules, trained parameters, losses, previews and exports.

A stage is one class and an entry of the registry; all of them run through `kgcli.training.loop.train`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kgcli.config import ModelConfig, Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.sources.base import Use
from kgcli.errors import ConfigError
from kgcli.model.randomness import StepRandom
from kgcli.recipe import explain
from kgcli.training.stages.start import find_start

# Features of a micro-batch's samples, (rows, ...) each -> those of all samples of the batch.
Whole = Callable[..., tuple[Tensor, ...]]


def alone(*features: Tensor) -> tuple[Tensor, ...]:
    """Return the features of a batch that is neither shared by processes nor split."""
    return features


@dataclass(frozen=True)
class Setup:
    """The parts of a recipe that a stage is built from."""

    stage: str  # its name, for messages
    init_from: Mapping[str, str]  # part -> the folder it starts from
    parts: Mapping[str, dict[str, Any]]  # library configurations of the parts that the stage builds
    options: Mapping[str, float]  # the stage's own options
    model: ModelConfig
    image_size: int  # pixels of targets
    seed: int
    texts: Callable[[int, int], list[str]]  # (number, seed) -> sentences of the data, for tokenizers
    found: dict[str, Path] = field(default_factory=dict)  # part -> its folder: looked up once

    def part(self, name: str) -> dict[str, Any]:
        """Return the library configuration of a part that the stage builds.

        Raises: ConfigError where the recipe does not have it.
        """
        if name not in self.parts:
            raise ConfigError(f"stage {self.stage} needs parts.{name}: the configuration of its {name}")
        return self.parts[name]

    def source(self, part: str) -> Path:
        """Return the folder that `part` starts from: a path, the name of a shipped or pulled model, or for some
        parts a Hub id.

        Raises: ConfigError, MissingError: the recipe does not name it, or it is not there.
        """
        if part not in self.init_from:
            raise ConfigError(f"stage {self.stage} needs init_from.{part}: the folder its {part} starts from")
        if part not in self.found:
            self.found[part] = find_start(part, self.init_from[part])
        return self.found[part]


class Stage(nn.Module):
    """A training stage: its modules, loss, preview and result."""

    needs: ClassVar[frozenset[str]]  # fields of Batch
    trains: tuple[str, ...]  # prefixes of parameter names; all else is frozen
    Options: ClassVar[type[Strict]] = Strict  # the stage's own options; the base has none
    options: Any
    uses_pool: ClassVar[bool] = False
    uses_hidden: ClassVar[bool] = False  # takes cached hidden states of its MLLM, which is frozen
    use: ClassVar[Use] = "generate"  # of images that come with a caption
    contrasts: ClassVar[bool] = False  # its loss compares the samples of a batch: `forward` takes a third argument

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        try:
            self.options = self.Options.model_validate(setup.options)
        except ValidationError as error:
            raise ConfigError(explain(error, self.Options, prefix="options.")) from None

    @abstractmethod
    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        """Return named losses, each a mean over the batch; their sum is minimised.

        A batch may be one micro-batch of one process. A mean over other items than samples is weighted by `counts`;
        a stage that `contrasts` samples takes `whole: Whole = alone` too, passes their features through it and returns
        the mean over all samples.
        """

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of items that a loss is a mean over, for each loss that is not a mean over samples."""
        return {}

    def padding(self) -> int | None:
        """Return the padding token if a loss depends on the padded length, which all processes then share."""
        return None

    @abstractmethod
    def collator(self, pool: Pool | None) -> Collator:
        """Return the collator of this stage's batches."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the result that the next stage or inference loads."""

    def calibrate(self, sample: Callable[[int], Sample]) -> None:
        """Calibrate on samples of another seed than training's, once, before the export."""
        return None

    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Return images in [0, 1], (N, 3, X, Y), that show the progress; None if there are none."""
        return None

    def pack(self, row_tokens: int) -> None:
        """Let several samples share a row of the MLLM, each attending to itself alone.

        Raises: ConfigError for a stage without an MLLM, or whose loss depends on padding.
        """
        raise ConfigError(f"pack: stage {self.setup.stage} has no MLLM")

    def heavy_parts(self) -> list[nn.Module]:
        """Return the modules worth compiling."""
        return []

    def idle_parts(self) -> list[nn.Module]:
        """Return the modules that `forward` does not compute."""
        return []

    def freeze(self) -> None:
        """Let only the parameters under `trains` train."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.trains))

"""The base of all training stages: modules, trained parameters, losses, previews and exports.

A stage is one class and an entry of the registry; all of them run through `kgcli.training.loop.train`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kgcli.config import ALIGNER, AlignerConfig, ModelConfig, Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.sources.base import Use
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import ConfigError, MissingError
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.model.randomness import StepRandom
from kgcli.model.vision import VisionTower
from kgcli.recipe import LoraConfig, explain
from kgcli.training.chains import check_start
from kgcli.training.stages.start import find_start
from kgcli.weights.config import read_model_config
from kgcli.weights.decoder import load_decoder
from kgcli.weights.load import ALIGNER_DECODER, has_aligner, load_kosmosg, load_tower
from kgcli.weights.safetensors import assign_weights, read_weights

_log = logging.getLogger(__name__)

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
    train: str = "full"  # of stage instruct: full, lora or aligner
    lora: LoraConfig = LoraConfig()
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
            self.found[part] = self.find(part)
        return self.found[part]

    def find(self, part: str, *, fetch: bool = True) -> Path:
        """Return the folder of a part that the recipe names, as `find_start` does.

        Raises: MissingError; ConfigError where it is of a run at another image size than its recipe has.
        """
        folder = find_start(part, self.init_from[part], fetch=fetch)
        check_start(self.init_from[part], self.image_size)
        return folder

    def read_weights(self, part: str, name: str) -> dict[str, Tensor]:
        """Read a file of weights in the folder of a part, in fp32. Raises: ConfigError, MissingError."""
        file = self.source(part) / name
        if not file.is_file():
            raise MissingError(f"init_from.{part}: there is no {name} in {self.init_from[part]}")
        try:
            return read_weights(file, dtype=torch.float32)
        except MissingError as error:
            raise MissingError(f"init_from.{part}: {error}") from None

    def model_config(self) -> ModelConfig:
        """Return the configuration of the model that the stage starts from. Raises: ConfigError, MissingError."""
        return read_model_config(self.source("model"))

    def load_model(self, *, with_aligner_decoder: bool = False, aligner: AlignerConfig | None = None) -> KosmosG:
        """Load the model that the stage starts from, with `aligner` in place of its own AlignerNet.

        Stages before instruct, which alone have the aligner's decoder, initialise what the model lacks of AlignerNet.

        Raises: ConfigError, MissingError, IncompatibleError.
        """
        folder = self.source("model")
        fresh: tuple[str, ...] = ()
        if with_aligner_decoder:
            fresh = self._missing_aligner(folder, renewed=aligner is not None)
        return self.load_folder(folder, with_aligner_decoder=with_aligner_decoder, fresh=fresh, aligner=aligner)

    def _missing_aligner(self, folder: Path, renewed: bool) -> tuple[str, ...]:
        """Return the prefix of AlignerNet's weights that a model lacks, unless AlignerNet is `renewed` as a whole."""
        if not has_aligner(folder):
            _log.warning("%s has no AlignerNet, as any result of stage 1: initialising it randomly", folder)
            return (ALIGNER,)
        if not renewed and self.model_config().aligner.kind == "full" and not has_aligner(folder, ALIGNER_DECODER):
            _log.warning("%s has no aligner.decoder, as any result of stage 3: initialising it randomly", folder)
            return (ALIGNER_DECODER,)
        return ()

    def load_folder(self, folder: Path, **options: Any) -> KosmosG:
        """Load a model folder with the options of `load_kosmosg`."""
        return load_kosmosg(folder, **options)

    def load_tokenizer(self, find: Callable[[], Path]) -> Tokenizer:
        """Load the MLLM's tokenizer from the folder that `find` returns. Raises: ConfigError, MissingError."""
        return Tokenizer.load(find())

    def load_decoder(self) -> Diffusion:
        """Load the image decoder. Raises: ConfigError, MissingError, IncompatibleError."""
        return load_decoder(self.source("decoder"))

    def load_text(self, part: str = "text") -> tuple[CLIPTokenizer | None, CLIPTextModel]:
        """Load the text encoder in the folder of a part, and its tokenizer. Raises: ConfigError, MissingError."""
        folder = self.text_folder(part)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return tokenizer, CLIPTextModel.from_pretrained(folder / "text_encoder")

    def text_folder(self, part: str) -> Path:
        """Return the folder with the text encoder of a part, such as a decoder. Raises: ConfigError, MissingError."""
        self.source(part)
        folder = find_start("text", self.init_from[part])  # a decoder's own files on the Hub leave it out
        for name in ("tokenizer", "text_encoder"):
            if not (folder / name).is_dir():
                raise MissingError(f"init_from.{part}: {self.init_from[part]} has no {name}")
        return folder

    def load_tower(self, tower: VisionTower) -> None:
        """Load the weights of a CLIP into a vision tower. Raises: ConfigError, MissingError, IncompatibleError."""
        folder = self.source("clip")
        assign_weights(tower, load_tower(folder, self.model.vision), source=str(folder))


class Stage(nn.Module):
    """A training stage: its modules, loss, preview and result."""

    needs: ClassVar[frozenset[str]]  # fields of Batch
    trains: tuple[str, ...]  # prefixes of parameter names; all else is frozen
    Options: ClassVar[type[Strict]] = Strict  # the stage's own options; the base has none
    options: Any
    uses_pool: ClassVar[bool] = False
    takes_hidden: ClassVar[frozenset[str]] = frozenset()  # values of a recipe's `train` that take cached hidden states
    kinds: ClassVar[frozenset[str]] = frozenset()  # of samples of the nano world that it is made for; none: all
    use: ClassVar[Use] = "generate"  # of images that come with a caption
    compiles: ClassVar[tuple[str, ...]] = ()  # the heaviest of `parts`
    has_shapes: ClassVar[bool] = False  # loads all parts by methods of `Setup`, so a dry run needs no weights
    contrasts: ClassVar[bool] = False  # its loss compares the samples of a batch: `forward` takes a third argument

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        try:
            self.options = self.Options.model_validate(setup.options)
        except ValidationError as error:
            raise ConfigError(explain(error, self.Options, prefix="options.")) from None

    @classmethod
    def needs_with(cls, options: Mapping[str, float]) -> frozenset[str]:
        """Return the fields of Batch that the stage needs with a recipe's options."""
        return cls.needs

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

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules that a recipe can compile or checkpoint the activations of, by its name for them."""
        return {}

    def pack(self, row_tokens: int) -> None:
        """Let several samples share a row of the MLLM, each attending to itself alone.

        Raises: ConfigError for a stage without an MLLM, or whose loss depends on padding.
        """
        raise ConfigError(f"pack: stage {self.setup.stage} has no MLLM")

    def idle_parts(self) -> list[nn.Module]:
        """Return the modules that `forward` does not compute."""
        return []

    def freeze(self) -> None:
        """Let only the parameters under `trains` train."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.trains))

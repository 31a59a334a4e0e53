"""KOSMOS-G as a method: generates from the input text and its images, as `kg generate` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from kgcli.data.images import open_image
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import PromptError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.settings import check_sampling, sampling_facts
from kgcli.evaluation.plan import Item
from kgcli.inference.request import check_fits, check_negative
from kgcli.weights.folder import ModelFolder, open_model

if TYPE_CHECKING:
    from kgcli.inference.model import Model

MARK = "<image>"


class KosmosG:
    """A model folder and its decoder; loaded when the first image is generated."""

    name = "kosmosg"

    def __init__(self, options: MethodOptions, folder: ModelFolder | None = None) -> None:
        if options.extra:
            raise UsageError(f"--set {options.extra[0][0]}: the method {self.name} has no settings of its own")
        self.options = options
        self.folder = folder or open_model(options.model, options.decoder, options.offline)
        self.sampling = check_sampling(options.sampling).over(self.folder.cfg.generation)
        self.negative = check_negative(options.negative_prompt, self.folder)
        self._model: Model | None = None

    @classmethod
    def of(cls, model: Model) -> Self:
        """Wrap a model that is loaded already."""
        method = cls(MethodOptions(device=model.device, dtype=model.dtype), model.folder)
        method._model = model
        return method

    def facts(self) -> dict[str, Any]:
        """Return model, decoder and settings."""
        return {
            "name": self.name,
            "model": self.folder.name,
            "model_sha256": self.folder.sha256,
            "decoder": Path(self.folder.decoder).name,
            "decoder_sha256": self.folder.decoder_sha256,
            "dtype": self.dtype,
            "negative_prompt": self.negative,
            **sampling_facts(self.sampling),
        }

    @cached_property
    def dtype(self) -> str:
        """The precision; that of `auto` depends on the device, and images depend on it."""
        if self.options.dtype != "auto":
            return self.options.dtype
        from kgcli.runtime import choose_device, choose_dtype

        return choose_dtype("auto", choose_device(self.options.device), self.folder.num_bytes)

    def check(self, items: Sequence[Item]) -> None:
        """Check that the model takes every prompt. Raises: UsageError."""
        for text, item in {item.input_text: item for item in reversed(items)}.items():
            try:
                check_fits(as_prompt(text), self.folder)
            except PromptError as error:
                raise UsageError(f"{item.path} cannot be generated: {error}: {text[:60]!r}") from None

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Do nothing: this method does not learn."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Generate one batch."""
        pipeline = self.loaded().pipeline
        prompts = [as_prompt(item.input_text) for item in items]
        images = [[open_image(data / path, srgb=False) for path in item.inputs] for item in items]
        return self.denoise_embeds(*pipeline.encode_prompt(prompts, images, self.negative), items)

    def denoise_embeds(self, embeds: Any, negative: Any, items: Sequence[Item]) -> list[Image.Image]:
        """Denoise images from conditioning embeddings."""
        from kgcli.inference.denoise import seeded
        from kgcli.runtime import memory_errors

        generators = seeded([item.seed for item in items])
        with memory_errors():
            return self.loaded().pipeline.sample(embeds, negative, generators=generators, sampling=self.sampling)

    def loaded(self) -> Model:
        """Return the model with its weights."""
        if self._model is None:
            from kgcli.inference.model import load
            from kgcli.runtime import choose_device, use_one_thread

            options = self.options
            device = choose_device(options.device)
            use_one_thread(device)
            self._model = load(self.folder, device=device, dtype=self.dtype, offline=options.offline)
        return self._model


def as_prompt(input_text: str) -> Prompt:
    """Parse an item's text. Inputs are centre-cropped, as in the published evaluation."""
    parts: list[str | ImageRef] = []
    for index, words in enumerate(input_text.split(MARK)):
        if index:
            parts.append(ImageRef(path="input", fit="crop"))
        if words.strip():
            parts.append(words)
    return Prompt(parts=tuple(parts), text=input_text)

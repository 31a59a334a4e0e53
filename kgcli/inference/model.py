"""A loaded model: KOSMOS-G, its decoder and their adapters, from requests to images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from kgcli.config import read_sampling
from kgcli.inference.adapters.named import Adapters, read_adapters
from kgcli.inference.denoise import StepCallback, denoise, seeded
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.inference.request import Request, choose_seeds, edit_prompt, make_request
from kgcli.runtime import check_quantize, choose_device, choose_dtype, choose_offload, memory_errors
from kgcli.weights.folder import ModelFolder, open_model
from kgcli.weights.safetensors import DTYPES

if TYPE_CHECKING:
    from kgcli.inference.adapters.attach import Attachments


class Model:
    """A loaded KOSMOS-G with its decoder, as returned by `kgcli.load`."""

    def __init__(
        self, folder: ModelFolder, pipeline: KosmosGPipeline, device: str, dtype: str, offline: bool = False
    ) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.device = device
        self.dtype = dtype
        self.offline = offline

    @cached_property
    def attachments(self) -> Attachments:
        """The adapters of the decoder, created on first use."""
        from kgcli.inference.adapters.attach import Attachments

        return Attachments(self.pipeline, local_files_only=self.offline)

    def attached(self, adapters: Adapters, size: tuple[int, int]) -> AbstractContextManager[None]:
        """Return a context in which the decoder has these adapters and no others; see `Attachments.on`."""
        if adapters == Adapters() and "attachments" not in vars(self):
            return nullcontext()
        return self.attachments.on(adapters, size)

    def generate(
        self,
        prompt: str,
        *,
        image: str | Sequence[str] = (),
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        num_images: int | None = None,
        lora: str | Sequence[str] = (),
        controlnet: str | Sequence[str] = (),
        controlnet_model: str | Sequence[str] = (),
        map_model: str | Sequence[str] = (),
        **settings: Any,
    ) -> list[Image.Image]:
        """Generate images from a prompt with `<image:PATH>` tags: one for each seed, or with the seed and those after.

        Keywords are the flags of `kg generate`: `image` fills numbered slots (`<image:-1>`); `lora`
        (`style.safetensors:0.7`), `controlnet` (`canny=a.jpg:0.8`), `controlnet_model` and `map_model`
        (`canny=FOLDER`) are one or several; `settings` are fields of `SamplingConfig` (`steps`, `guidance_scale`,
        `width`, `height`, `scheduler`). The names of earlier versions (`images`, `loras`, `controls`,
        `controlnet_models`, `map_models`) are read too.

        Raises: UsageError, PromptError, ImageError, IncompatibleError; MissingError.

        Example:
            >>> model = load(device="cpu")
            >>> images = model.generate("a cat in the snow", seed=0, num_images=2, steps=2)
            >>> [image.size for image in images]
            [(64, 64), (64, 64)]
        """
        slots = _several(image, settings, "images")
        adapters = read_adapters(
            self.folder,
            loras=_several(lora, settings, "loras"),
            controls=_several(controlnet, settings, "controls"),
            controlnet_models=_several(controlnet_model, settings, "controlnet_models"),
            map_models=_several(map_model, settings, "map_models"),
        )
        seeds = choose_seeds(seed, num_images)
        first = make_request(
            self.folder,
            prompt,
            images=slots,
            negative_prompt=negative_prompt,
            seed=seeds[0],
            sampling=read_sampling(settings),
            adapters=adapters,
        )
        requests = [replace(first, seed=one) for one in seeds]
        return [image for _, image in generate(self, requests)]

    def edit(self, image: str, instruction: str, **options: Any) -> list[Image.Image]:
        """Edit an image by an instruction; options as of `generate`.

        Example:
            >>> model = load(device="cpu")
            >>> len(model.edit("nano/cat.png", "add a hat", seed=0, steps=2))
            1
        """
        return self.generate(edit_prompt(image, instruction), **options)


def load(
    model: str | ModelFolder | None = None,
    *,
    decoder: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "none",
    quantize: str = "none",
    offline: bool = False,
) -> Model:
    """Load a model: a folder, a Hub id, or None for the shipped nano model.

    `offload` keeps weights in main memory and moves those in use to the GPU: none, model or sequential.
    `quantize` stores the MLLM's linear layers in few bits: none, 8bit or 4bit (needs the extra `quant`).

    Raises:
        MissingError: it is missing or damaged.
        IncompatibleError: it does not fit this version or device.

    Example:
        >>> load(device="cpu").folder.name
        'nano'
    """
    device = choose_device(device)
    check_quantize(quantize, device)
    folder = model if isinstance(model, ModelFolder) else open_model(model, decoder, offline)
    dtype = choose_dtype(dtype, device, folder.num_bytes)
    offload = choose_offload(offload, device)
    with memory_errors():
        pipeline = KosmosGPipeline.from_pretrained(
            folder,
            torch_dtype=DTYPES[dtype],
            quantize=quantize,
            device=device if offload == "none" else "cpu",
            local_files_only=offline,
        )
        if offload != "none":
            pipeline.enable_offload(offload, device)
        return Model(folder, pipeline, device, dtype, offline)


def generate(
    model: Model, requests: Iterable[Request], on_step: StepCallback | None = None
) -> Iterator[tuple[Request, Image.Image]]:
    """Generate one image for each request, in order.

    Each is generated alone, so that its pixels depend only on its own request; a prompt repeated in consecutive
    requests is encoded once.
    """
    pipeline = model.pipeline
    previous: Request | None = None
    embeds: tuple[torch.Tensor, torch.Tensor] | None = None
    for request in requests:
        sampling = request.sampling.over(model.folder.cfg.generation)
        pipeline.decoder.check_size(*sampling.size)
        with memory_errors():
            if embeds is None or previous is None or not _same_prompt(previous, request):
                embeds = pipeline.encoder.encode_request(request)
            previous = request
            with model.attached(request.adapters, sampling.size):
                (image,) = denoise(
                    pipeline.sd, pipeline.decoder, *embeds, seeded([request.seed]), sampling, on_step=on_step
                )
        yield request, image


def _several(given: str | Sequence[str], settings: dict[str, Any], earlier: str) -> list[str]:
    """Return one or several values as a list, else those under the keyword of earlier versions."""
    values = given or settings.pop(earlier, ())
    return [values] if isinstance(values, str) else list(values)


def _same_prompt(one: Request, other: Request) -> bool:
    """Return True if two requests have the same conditioning."""
    images = [[image.sha256 for image in request.images] for request in (one, other)]
    return (one.prompt, one.negative_prompt) == (other.prompt, other.negative_prompt) and images[0] == images[1]

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
from kgcli.inference.batching import each_row, halved_on_failure, make_batches
from kgcli.inference.denoise import StepCallback, denoise, seeded
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.fast_decoder import channels_last, compile_decoder
from kgcli.inference.metadata import Metadata, describe
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.inference.request import Request, choose_seeds, edit_prompt, make_request
from kgcli.runtime import check_compile, check_quantize, choose_device, choose_dtype, choose_offload, memory_errors
from kgcli.weights.folder import ModelFolder, open_model
from kgcli.weights.safetensors import DTYPES

if TYPE_CHECKING:
    from kgcli.inference.adapters.attach import Attachments


class Model:
    """A loaded KOSMOS-G with its decoder, as returned by `kgcli.load`."""

    def __init__(
        self,
        folder: ModelFolder,
        pipeline: KosmosGPipeline,
        device: str,
        dtype: str,
        offline: bool = False,
        *,
        offload: str = "none",
        compiled: bool = False,
    ) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.device = device
        self.dtype = dtype
        self.offline = offline
        self.offload = offload
        self.compiled = compiled

    @property
    def threads(self) -> int | None:
        """The number of CPU threads that compute, None on another device."""
        return torch.get_num_threads() if self.device.startswith("cpu") else None

    def describe(self, request: Request) -> Metadata:
        """Return the metadata of an image that `generate` made, from the request that it gave with it."""
        return describe(
            request,
            self.folder,
            self.device,
            self.dtype,
            self.pipeline.model.quantize,
            threads=self.threads,
            compiled=self.compiled,
        )

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
        batch_size: int | str = 1,
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
        `controlnet_models`, `map_models`) are read too. `batch_size` images (or auto) are denoised together: faster,
        and each then differs in its last bits from the same image generated alone.

        Raises: UsageError, PromptError, ImageError, IncompatibleError; MissingError.

        Example:
            >>> model = load(device="cpu")
            >>> images = model.generate("a cat in the snow", seed=0, num_images=2, steps=2)
            >>> [image.size for image in images]
            [(128, 128), (128, 128)]
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
        return [image for _, image in generate(self, requests, batch_size=batch_size)]

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
    compile: bool = False,
    offline: bool = False,
) -> Model:
    """Load a model: a folder, a Hub id, or None for the shipped nano model.

    `offload` keeps weights in main memory and moves those in use to the GPU: none, model or sequential.
    `quantize` stores the MLLM's linear layers in few bits: none, 8bit or 4bit (needs the extra `quant`).
    `compile` compiles U-Net and VAE decoder on the first image, which takes a minute or more, and lays their weights
    out with channels last.

    Raises:
        MissingError: it is missing or damaged.
        IncompatibleError: it does not fit this version or device.

    Example:
        >>> load(device="cpu").folder.name
        'nano'
    """
    device = choose_device(device)
    check_quantize(quantize, device)
    check_compile(compile, device, offload)
    if isinstance(model, ModelFolder):
        folder = model if decoder is None else model.with_decoder(decoder)
    else:
        folder = open_model(model, decoder, offline)
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
        if compile:
            compile_decoder(pipeline.decoder)
        return Model(folder, pipeline, device, dtype, offline, offload=offload, compiled=compile)


def generate(
    model: Model,
    requests: Iterable[Request],
    on_step: StepCallback | None = None,
    batch_size: int | str = 1,
) -> Iterator[tuple[Request, Image.Image]]:
    """Generate one image for each request, in order; yields the requests with their rows.

    By default each is generated alone, so that its pixels depend only on its own request. With a larger `batch_size`
    (up to MAX_BATCH, or auto) consecutive requests of one size and the same settings and adapters are denoised
    together; a request that comes with a row is generated in that row. `on_step` is called for each step of each
    image. A prompt repeated in consecutive requests is encoded once.

    Raises: OutOfMemoryError; with auto only if a single image does not fit.
    """
    pipeline, defaults = model.pipeline, model.folder.cfg.generation
    conditioning = _Conditioning(pipeline.encoder)
    batches = make_batches(requests, batch_size, defaults, model.device)
    for batch in batches:
        first, rows = batch[0], batch[0].row.size
        sampling = first.sampling.over(defaults)
        pipeline.decoder.check_size(*sampling.size)
        # A batch for a single row repeats its request, so that the batch has its recorded size.
        filled = batch if len(batch) == rows else batch * rows
        with halved_on_failure(batches, batch) as failed, memory_errors():
            embeds = conditioning.of(filled)
            with (
                model.attached(first.adapters, sampling.size),
                channels_last(pipeline.decoder, model.compiled or (rows > 1 and model.offload == "none")),
            ):
                images = denoise(
                    pipeline.sd,
                    pipeline.decoder,
                    *embeds,
                    seeded([request.seed for request in filled]),
                    sampling,
                    on_step=each_row(on_step, len(batch)),
                )
        if not failed:
            yield from zip(batch, [images[request.row.index] for request in batch], strict=True)


class _Conditioning:
    """Conditionings of requests, each encoded alone; the last prompt's is kept."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        self.previous: Request | None = None
        self.embeds: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positive and negative conditionings, (B, S, d) each."""
        found = [self._one(request) for request in requests]
        if len(found) == 1:
            return found[0]
        positive, negative = zip(*found, strict=True)
        return torch.cat(positive), torch.cat(negative)

    def _one(self, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        if self.embeds is None or self.previous is None or not _same_prompt(self.previous, request):
            self.embeds = self.encoder.encode_request(request)
        self.previous = request
        return self.embeds


def _several(given: str | Sequence[str], settings: dict[str, Any], earlier: str) -> list[str]:
    """Return one or several values as a list, else those under the keyword of earlier versions."""
    values = given or settings.pop(earlier, ())
    return [values] if isinstance(values, str) else list(values)


def _same_prompt(one: Request, other: Request) -> bool:
    """Return True if two requests have the same conditioning."""
    images = [[image.sha256 for image in request.images] for request in (one, other)]
    return (one.prompt, one.negative_prompt) == (other.prompt, other.negative_prompt) and images[0] == images[1]

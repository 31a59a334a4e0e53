"""The verbs: load, generate, edit, train, evaluate. Owns device, dtype, seeds and environment."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from kgcli.config import OFFLOADS
from kgcli.data.prompt import Prompt
from kgcli.errors import IncompatibleError, OutOfMemoryError, UsageError
from kgcli.inference.adapters import read_adapters
from kgcli.inference.conditioning import TENSORS, write_conditioning
from kgcli.inference.decoder_adapters import Attachments
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.inputs import read_negatives
from kgcli.inference.pipeline import KosmosGPipeline, StepCallback, seeded
from kgcli.inference.request import Request, Settings, edit_prompt, make_request, random_seed
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.folder import WEIGHTS_NAME, ModelFolder, open_model
from kgcli.weights.quantization import check_quantize
from kgcli.weights.safetensors import DTYPES

if TYPE_CHECKING:
    from kgcli.config import Recipe

DEVICES = ("cpu", "cuda", "mps")
LARGE_MODEL = 10**9  # bytes of weights from which `auto` takes half precision on a GPU

_log = logging.getLogger(__name__)


class Model:
    """A loaded KOSMOS-G with its decoder: what `kgcli.load` returns."""

    def __init__(
        self, folder: ModelFolder, pipeline: KosmosGPipeline, device: str, dtype: str, offline: bool = False
    ) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.device = device
        self.dtype = dtype
        self.attachments = Attachments(pipeline, local_files_only=offline)

    def generate(
        self,
        prompt: str,
        *,
        images: Sequence[str] = (),
        negative_prompt: str = "",
        seed: int | None = None,
        num_images: int = 1,
        loras: Sequence[str] = (),
        controls: Sequence[str] = (),
        controlnet_models: Sequence[str] = (),
        map_models: Sequence[str] = (),
        **settings: Any,
    ) -> list[Image.Image]:
        """Pictures of a prompt with `<image:PATH>` in it, for the seed and those after it.

        `images` fill numbered slots (`<image:-1>`); `loras` (`style.safetensors:0.7`), `controls` (`canny=a.jpg:0.8`),
        `controlnet_models` and `map_models` (`canny=FOLDER`) are written as on the command line; `settings` are the
        fields of `Settings`.
        """
        adapters = read_adapters(
            self.folder,
            loras=loras,
            controls=controls,
            controlnet_models=controlnet_models,
            map_models=map_models,
        )
        first = random_seed() if seed is None else seed
        checked = _settings(settings)
        requests = [
            make_request(
                self.folder,
                prompt,
                images=images,
                negative_prompt=negative_prompt,
                seed=first + offset,
                settings=checked,
                adapters=adapters,
            )
            for offset in range(num_images)
        ]
        return [image for _, image in generate(self, requests)]

    def edit(self, image: str, instruction: str, **options: Any) -> list[Image.Image]:
        """Pictures of an instruction carried out on a picture; options as of `generate`."""
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
    """Load a model: a folder, a Hub id, or None for the small one that ships with the package.

    `offload` keeps weights in main memory and lends a GPU what is at work: none, model or sequential.
    `quantize` holds the MLLM's linear layers in few bits: none, 8bit or 4bit (with the extra `quant`).

    Raises:
        MissingError: it is not there or is damaged.
        IncompatibleError: it or the device does not fit.
    """
    device = choose_device(device)
    check_quantize(quantize, device)
    folder = model if isinstance(model, ModelFolder) else open_model(model, decoder, offline)
    dtype = choose_dtype(dtype, device, folder)
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
    """Draw one picture for each request, in order.

    Each is drawn alone, so that its pixels depend on nothing but its own request; a prompt that several requests in
    a row share is encoded once.
    """
    previous: Request | None = None
    embeds: tuple[torch.Tensor, torch.Tensor] | None = None
    for request in requests:
        settings = request.settings.filled(model.folder)
        assert settings.width is not None and settings.height is not None, "filled above"
        model.pipeline.decoder.check_size(settings.width, settings.height)
        with memory_errors():
            if embeds is None or previous is None or not _same_prompt(previous, request):
                pictures = [picture.load() for picture in request.pictures]
                embeds = model.pipeline.encode_prompt(
                    [request.prompt], [pictures], Prompt(parts=(request.negative_prompt,))
                )
            previous = request
            image = _draw(model, replace(request, settings=settings), embeds, on_step)
        yield request, image


def encode(
    folder: ModelFolder,
    request: Request,
    out: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> dict[str, list[int]]:
    """Write the conditioning of a request to a file, without loading an image decoder; returns the tensors' shapes."""
    device = choose_device(device)
    dtype = choose_dtype(dtype, device, folder)
    with memory_errors():
        kosmosg = KosmosG.from_pretrained(folder.path, device=device, dtype=DTYPES[dtype], quantize=quantize)
        encoder = PromptEncoder(kosmosg, folder.tokenizer)
        embeds = (
            encoder.encode([request.prompt], [[picture.load() for picture in request.pictures]]),
            encoder.encode_negatives(read_negatives(Prompt(parts=(request.negative_prompt,)), 1)),
        )
    write_conditioning(out, embeds, request, folder, quantize)
    return {name: list(tensor.shape) for name, tensor in zip(TENSORS, embeds, strict=True)}


def edit(
    model: Model, image: str, instruction: str, *, seed: int | None = None, settings: Settings | None = None
) -> Image.Image:
    """Carry out an instruction on a picture: `generate` with a prompt that begins with the picture."""
    request = make_request(
        model.folder,
        edit_prompt(image, instruction),
        seed=random_seed() if seed is None else seed,
        settings=settings,
    )
    return next(generate(model, [request]))[1]


def train(recipe: Recipe, resume: str = "auto", dry_run: bool = False) -> Any:
    """Run one training stage; see `kgcli.training.loop.train`."""
    from kgcli.training.loop import train as run  # training needs more than drawing does

    return run(recipe, resume=resume, dry_run=dry_run)


def evaluate(suite: str, model: Model, **options: Any) -> Any:
    """Run a suite of `kgcli.evaluation` on a model and return its report."""
    return import_module(f"kgcli.evaluation.{suite}").evaluate(model, **options)


def choose_device(name: str) -> str:
    """The device of a name; `auto` is the fastest there is.

    Raises: IncompatibleError where it is not there, UsageError where there is no such kind.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UsageError(f"--device is {name}; it must be auto or one of {', '.join(DEVICES)} (cuda:1 for the second)")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    try:
        index = torch.device(name).index or 0
    except RuntimeError:
        raise UsageError(f"--device is {name}; write {kind} or {kind}:0") from None
    if index and kind != "cuda":
        raise IncompatibleError(f"--device is {name}, but there is one {kind} alone; write --device {kind}")
    if not available[kind] or (kind == "cuda" and index >= torch.cuda.device_count()):
        raise IncompatibleError(f"--device is {name}, but there is no such device here; use --device cpu or auto")
    return name


def choose_dtype(name: str, device: str, folder: ModelFolder) -> str:
    """The precision of a name; `auto` is half for large models on a GPU (bfloat16 where it has that), else full.

    Small models stay in full precision: they are fast in any, and replay alike on any machine.

    Raises: UsageError.
    """
    if name == "auto":
        size = sum(path.stat().st_size for path in folder.path.glob(f"{WEIGHTS_NAME.partition('.')[0]}*.safetensors"))
        if not device.startswith("cuda") or size < LARGE_MODEL:
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name not in DTYPES:
        raise UsageError(f"--dtype is {name}; it must be auto or one of {', '.join(DTYPES)}")
    return name


def choose_offload(name: str, device: str) -> str:
    """How weights are kept out of a device's memory: not at all where it has none of its own.

    Raises: UsageError.
    """
    if name not in OFFLOADS:
        raise UsageError(f"--offload is {name}; it must be one of {', '.join(OFFLOADS)}")
    if name != "none" and not device.startswith("cuda"):
        _log.warning("--offload %s changes nothing here: %s shares the main memory", name, device)
        return "none"
    return name


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory errors into ours.

    Raises: OutOfMemoryError that names the flags to try.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            "out of GPU memory: try --offload model (or sequential), --dtype float16, or a smaller -W and -H"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError("out of memory: try a smaller -W and -H, or --dtype bfloat16") from None


def _draw(
    model: Model, request: Request, embeds: tuple[torch.Tensor, torch.Tensor], on_step: StepCallback | None
) -> Image.Image:
    """The picture of a request whose settings are all filled in."""
    settings = request.settings
    assert settings.width is not None and settings.height is not None, "filled in"
    with model.attachments.on(request.adapters, (settings.width, settings.height)):
        return model.pipeline.draw(
            *embeds,
            generators=seeded([request.seed]),
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            scheduler=settings.scheduler,
            on_step=on_step,
        )[0]


def _same_prompt(one: Request, other: Request) -> bool:
    """Whether two requests are encoded alike."""
    pictures = [[picture.sha256 for picture in request.pictures] for request in (one, other)]
    return (one.prompt, one.negative_prompt) == (other.prompt, other.negative_prompt) and pictures[0] == pictures[1]


def _settings(given: dict[str, Any]) -> Settings:
    unknown = set(given) - set(Settings.__dataclass_fields__)
    if unknown:
        raise UsageError(f"unknown setting {sorted(unknown)[0]}; there are {', '.join(Settings.__dataclass_fields__)}")
    return Settings(**given)

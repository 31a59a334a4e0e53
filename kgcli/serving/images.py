"""OpenAI's image calls as requests to the model, and generated images as its responses.

Source: the API reference of OpenAI's images (`images/generations`, `images/edits`); `seed`, `steps`,
`guidance_scale`, `negative_prompt` and `scheduler` are additions.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kgcli.config import SamplingConfig
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import ImageError, PromptError, UsageError
from kgcli.inference.adapters.named import Adapters
from kgcli.inference.metadata import encode_image
from kgcli.inference.request import check_seed, make_request, random_seed
from kgcli.serving.form import Part

if TYPE_CHECKING:
    from kgcli.inference.model import Model
    from kgcli.inference.request import Request
    from kgcli.serving.worker import Made

MAX_IMAGES = 10  # of one call, as OpenAI's
MAX_PIXELS = 16 * 2**20  # of all images of one call together
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FILE_FIELDS = ("image", "image[]")
# Accepted, and without a meaning here.
IGNORED = ("user", "quality", "style", "moderation", "input_fidelity", "output_compression")


class Call(BaseModel):
    """The parameters of a call, of a JSON body or a form."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False, "false"] | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    user: Any = None
    quality: Any = None
    style: Any = None
    moderation: Any = None
    input_fidelity: Any = None
    output_compression: Any = None

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling settings of the call.

        Raises: UsageError for a size of another form.
        """
        width, height = (None, None) if self.size in (None, "auto") else _parse_size(self.size or "")
        return SamplingConfig(
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
        )


@dataclass(frozen=True)
class Service:
    """A model with the settings of a server, from calls to requests and from images to responses."""

    model: Model
    sampling: SamplingConfig = SamplingConfig()  # defaults of calls, over the model's own
    adapters: Adapters = Adapters()

    def requests(self, call: Call, uploads: Sequence[Path] = ()) -> list[Request]:
        """Return the requests of a call; `uploads` are the images that tags may name by number.

        Raises: UsageError, PromptError, ImageError.
        """
        folder = self.model.folder
        if call.model not in (None, "", folder.name):
            raise UsageError(f"the model {call.model} is not served here; it is {folder.name}")
        sampling = call.sampling.over(self.sampling)
        width, height = sampling.over(folder.cfg.generation).size
        num_images = call.n or 1
        sampling.check()
        if width * height * num_images > MAX_PIXELS:
            raise UsageError(f"{num_images} images of {width}x{height} pixels are more than one call may ask for")
        seed = random_seed() if call.seed is None else call.seed
        check_seed(seed)
        check_seed(seed + num_images - 1)
        try:
            first = make_request(
                folder,
                prompt_text(call.prompt, len(uploads)),
                images=[str(path) for path in uploads],
                negative_prompt=call.negative_prompt or "",
                seed=seed,
                sampling=sampling,
                adapters=self.adapters,
            )
        except ImageError as error:  # without the server's folders
            message = str(error)
            for path in uploads:
                message = message.replace(str(path), path.name)
            raise ImageError(message) from None
        # Decoded pixels of all that wait would not fit in memory.
        first = replace(first, images=tuple(image.without_pixels() for image in first.images))
        return [replace(first, seed=seed + offset) for offset in range(num_images)]

    def encode(self, call: Call, made: Made) -> list[tuple[int, str, bytes]]:
        """Return the seed, file suffix and bytes of each image, with its metadata."""
        suffix = FORMATS[call.output_format or "png"]
        return [
            (request.seed, suffix, encode_image(image, suffix, self.model.describe(request))) for request, image in made
        ]


def respond(
    files: Sequence[tuple[int, str, bytes]], call: Call, publish: Callable[[bytes, str], str]
) -> dict[str, object]:
    """Return the JSON response with images; `publish` keeps one and returns its URL."""
    data: list[dict[str, object]] = []
    for seed, suffix, content in files:
        if call.response_format == "url":
            data.append({"url": publish(content, suffix), "seed": seed})
        else:
            data.append({"b64_json": base64.b64encode(content).decode("ascii"), "seed": seed})
    return {"created": int(time.time()), "data": data}


def read_call(values: Mapping[str, Any]) -> Call:
    """Check the parameters of a call.

    Raises: UsageError that begins with the parameter.
    """
    try:
        return Call.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "the body"
        if first["type"] == "extra_forbidden":
            known = [one for one in Call.model_fields if one not in IGNORED]
            raise UsageError(f"{name}: there is no such parameter here; there are {', '.join(known)}") from None
        raise UsageError(f"{name}: {first['msg']}") from None


def read_form(parts: Sequence[Part], folder: Path) -> tuple[Call, list[Path]]:
    """Check the parameters of a form, and write its images to files of a folder.

    Raises: UsageError.
    """
    values: dict[str, str] = {}
    uploads: list[Path] = []
    for part in parts:
        if part.name in FILE_FIELDS:
            uploads.append(folder / f"image-{len(uploads) + 1}.png")
            uploads[-1].write_bytes(part.data)
        elif part.name == "mask":
            raise UsageError("mask: masks are not supported; describe the change in the prompt")
        elif part.is_file or part.name in values:
            raise UsageError(f"{part.name}: a form takes one text for it")
        else:
            values[part.name] = part.text
    if not uploads:
        raise UsageError("image: an edit needs at least one image file")
    return read_call(values), uploads


def prompt_text(text: str, num_uploads: int) -> str:
    """Return a prompt whose tags name uploaded images by number only.

    Without a tag the uploaded images come first, in their order, cropped to squares, as in `kg edit`.

    Raises: PromptError for a tag that names a file: no path of this machine is ever read.

    Example:
        >>> prompt_text("add a hat", 1)
        '<image:-1|fit=crop> add a hat'
    """
    prompt = Prompt.parse(text)
    for ref in prompt.images:
        if ref.slot is None:
            raise PromptError(
                "an image tag may only name an uploaded image: <image:-1> is the first", column=ref.column, prompt=text
            )
    if prompt.images or not num_uploads:
        return text
    refs = (Prompt(parts=(ImageRef(slot=number, fit="crop"),)).format() for number in range(1, num_uploads + 1))
    return " ".join([*refs, text])


def _parse_size(text: str) -> tuple[int, int]:
    width, by, height = text.partition("x")
    if not by or not (width + height).isascii() or not (width.isdigit() and height.isdigit()) or len(text) > 11:
        raise UsageError(f"size: write WIDTHxHEIGHT in pixels, such as 512x512, or auto, not {text[:40]}")
    return int(width), int(height)

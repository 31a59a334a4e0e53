"""Request for one image: prompt, opened images, seed and settings, all checked."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from kgcli.config import SamplingConfig
from kgcli.data.images import ImageFile, read_image
from kgcli.data.prompt import ImageRef, Prompt, check_length, encode
from kgcli.errors import ImageError, PromptError, UsageError
from kgcli.inference.adapters.named import Adapters
from kgcli.inference.notes import notes_about
from kgcli.weights.folder import ModelFolder
from kgcli.weights.shipped import find_image

MAX_SEED = 2**63 - 1
MAX_IMAGES = 100_000  # of one prompt; more is likely a typing error

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """The place of an image among those denoised together, which its last bits depend on."""

    size: int = 1  # images of the batch
    index: int = 0  # of this image, from 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The inputs of one image, apart from the model."""

    prompt: Prompt
    images: tuple[ImageFile, ...] = ()  # one for each image of the prompt
    negative_prompt: str = ""
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    adapters: Adapters = Adapters()
    row: BatchRow = BatchRow()  # a size above 1 asks for the image of that row; else it is set when it is generated


def make_request(
    model: ModelFolder,
    text: str,
    *,
    images: Sequence[str] = (),
    negative_prompt: str = "",
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    adapters: Adapters | None = None,
) -> Request:
    """Parse a prompt, open its images and check everything against the model.

    Raises: UsageError, PromptError, ImageError.
    """
    prompt = Prompt.parse(text).fill_slots(images)
    return check_request(
        model, prompt, negative_prompt=negative_prompt, seed=seed, sampling=sampling, adapters=adapters
    )


def check_request(
    model: ModelFolder,
    prompt: Prompt,
    images: tuple[ImageFile, ...] | None = None,
    *,
    negative_prompt: str = "",
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    adapters: Adapters | None = None,
) -> Request:
    """Check a parsed prompt and its settings against the model; images that are not given are opened by their paths.

    Raises: UsageError, PromptError, ImageError.
    """
    sampling = (sampling or SamplingConfig()).over(model.cfg.generation)
    sampling.check()
    check_seed(seed)
    check_fits(prompt, model)
    images = open_images(prompt) if images is None else images
    for note in notes_about(prompt, sampling, model):
        _log.warning("%s", note)
    return Request(
        prompt=prompt,
        images=images,
        negative_prompt=check_negative(negative_prompt, model),
        seed=seed,
        sampling=sampling,
        adapters=adapters or Adapters(),
    )


def edit_prompt(image: str, instruction: str) -> str:
    """Return the prompt of an edit: the image, cropped if it is not square, then the instruction."""
    ref = ImageRef(path=str(image), fit="crop")
    return Prompt(parts=(ref, " ")).format() + instruction


def check_fits(prompt: Prompt, model: ModelFolder) -> None:
    """Refuse a prompt with more images or tokens than the model takes.

    Raises: PromptError.
    """
    sequence = encode(prompt.fragments, model.tokenizer, model.cfg.resampler.num_queries)
    check_length(prompt, sequence, max_images=model.cfg.max_images, max_tokens=model.cfg.mllm.max_positions)


def check_negative(text: str, model: ModelFolder) -> str:
    """Return a negative prompt as plain text, its escapes resolved.

    Raises: PromptError for an image in it.
    """
    prompt = Prompt.parse(text)
    if prompt.images:
        raise PromptError("a negative prompt takes text only", column=prompt.images[0].column, prompt=text)
    check_fits(prompt, model)
    return "".join(part for part in prompt.parts if isinstance(part, str))


def open_images(prompt: Prompt) -> tuple[ImageFile, ...]:
    """Open the images of a prompt, each file once.

    Raises: ImageError with the column of the tag.
    """
    opened: dict[str, ImageFile] = {}
    for ref in prompt.images:
        if ref.path in opened:
            continue
        try:
            opened[ref.path] = read_image(find_image(ref.path))
        except ImageError as error:
            raise ImageError(str(error), column=ref.column, prompt=prompt.text) from None
    return tuple(opened[ref.path] for ref in prompt.images)


def random_seed() -> int:
    """Return a random seed of at most 32 bits."""
    return secrets.randbelow(2**32)


def check_seed(seed: int) -> None:
    """Refuse a seed the generator does not take.

    Raises: UsageError.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed is {seed}; it must be from 0 to {MAX_SEED}")


def choose_seeds(given: int | Sequence[int] | None, num_images: int | None = None) -> list[int]:
    """Return one seed per image: those given, or consecutive ones from the first or a random one.

    Raises: UsageError.
    """
    if num_images is not None and not 1 <= num_images <= MAX_IMAGES:
        raise UsageError(f"num_images (--num-images) is {num_images}; it must be from 1 to {MAX_IMAGES}")
    seeds = [given] if isinstance(given, int) else list(given or [])
    for seed in seeds:
        check_seed(seed)
    if len(seeds) > 1:
        if num_images not in (None, len(seeds)):
            raise UsageError(f"{len(seeds)} seeds give {len(seeds)} images; leave --num-images {num_images} out")
        return seeds
    first = seeds[0] if seeds else random_seed()
    check_seed(first + (num_images or 1) - 1)
    return [first + offset for offset in range(num_images or 1)]

"""Prompts of the page: text that may name uploaded images by number, and nothing else.

a cat <image:-1> in the snow        the first image of the page
<image:-2|weight=0.8> on the beach  options as everywhere

A path, `..`, `file://` or a URL in a tag is refused before anything is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from kgcli.app.limits import MAX_LINES
from kgcli.app.uploads import Upload
from kgcli.config import SamplingConfig
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import PromptError, UsageError
from kgcli.inference.adapters.named import Adapters
from kgcli.inference.request import Request, check_request
from kgcli.weights.folder import ModelFolder

_LINK = re.compile(r"[a-z][a-z0-9+.-]{0,15}:/{2}", re.IGNORECASE)  # file://, https:// ...


def read_request(
    model: ModelFolder,
    text: str,
    uploads: Sequence[Upload],
    *,
    negative_prompt: str = "",
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    adapters: Adapters | None = None,
    all_used: bool = True,
) -> Request:
    """Return the checked request of a prompt of the page; `all_used` refuses an image that it does not name.

    Raises: UsageError, PromptError.
    """
    if not text.strip():
        raise UsageError("the prompt is empty; describe an image")
    if link := _LINK.search(text):
        raise PromptError(
            "the page opens no files and no addresses: add the image above, then write <image:-1>",
            column=link.start() + 1,
            prompt=text,
        )
    parsed = Prompt.parse(text)
    prompt = place_uploads(parsed, uploads, all_used=all_used)
    images = tuple(uploads[ref.slot - 1].file for ref in parsed.images if ref.slot is not None)
    return check_request(
        model,
        prompt,
        images,
        negative_prompt=negative_prompt,
        seed=seed,
        sampling=sampling,
        adapters=adapters,
    )


def place_uploads(prompt: Prompt, uploads: Sequence[Upload], *, all_used: bool = True) -> Prompt:
    """Return the prompt with the names and weights of uploaded images in its numbered slots.

    Raises: PromptError for a tag that names anything but an uploaded image, and for an image without a place.
    """
    for ref in prompt.images:
        if ref.slot is None:
            raise PromptError(
                "a prompt here can only name uploaded images, by number: <image:-1> is the first",
                column=ref.column,
                prompt=prompt.text,
            )
        if ref.slot > len(uploads):
            raise PromptError(
                f"<image:-{ref.slot}> asks for image {ref.slot}, but there are {len(uploads)}; add an image or "
                "change the number",
                column=ref.column,
                prompt=prompt.text,
            )
    used = {ref.slot for ref in prompt.images}
    for number, upload in enumerate(uploads, start=1):
        if all_used and number not in used:
            raise PromptError(
                f"image {number} ({upload.file.name}) has no place in the prompt: write <image:-{number}> there, or "
                "remove the image"
            )
    parts = tuple(_placed(part, uploads) if isinstance(part, ImageRef) else part for part in prompt.parts)
    return Prompt(parts=parts, text=prompt.text)


def edit_request(
    model: ModelFolder,
    uploads: Sequence[Upload],
    instruction: str,
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    adapters: Adapters | None = None,
) -> Request:
    """Return the checked request of an edit: the uploaded image, cropped if it is not square, then the instruction.

    Raises: UsageError, PromptError.
    """
    if len(uploads) != 1:
        raise UsageError("add the image to edit first")
    if not instruction.strip():
        raise UsageError("the instruction is empty; write the change to make, such as: add a hat")
    text = f"<image:-1|fit=crop> {instruction}"
    return read_request(model, text, uploads, seed=seed, sampling=sampling, adapters=adapters)


def read_lines(text: str) -> list[str]:
    """Return the prompts of a batch, one a line, empty lines left out.

    Raises: UsageError for none or too many.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError("the batch is empty; write one prompt per line")
    if len(lines) > MAX_LINES:
        raise UsageError(f"the batch has {len(lines)} prompts; at most {MAX_LINES} are generated at once")
    return lines


def _placed(ref: ImageRef, uploads: Sequence[Upload]) -> ImageRef:
    """Return a tag with the name of its image; a weight in the tag wins over that of the image's slider."""
    assert ref.slot is not None, "checked above"
    upload = uploads[ref.slot - 1]
    weight = upload.weight if ref.weight == 1.0 else ref.weight
    return replace(ref, slot=None, path=upload.file.name, weight=weight)

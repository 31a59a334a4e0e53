"""Prompts and images of a Python caller, parsed and opened.

"a <image:cat.png> in the snow"                        files named in the text
"a <image> and a <image>", images=[cat, "dog.png"]     images passed separately, in reading order (`<i>` is the same)
"a <image:-2> and a <image:-1>", images=[cat, dog]     the same, by number
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kgcli.data.images import open_image, upright_rgb
from kgcli.data.prompt import Prompt
from kgcli.errors import ImageError, PromptError, UsageError
from kgcli.weights.shipped import find_image

PromptLike = str | Prompt
ImageLike = Image.Image | str | Path
PromptImages = list[Image.Image]
# `<image>`, `<image|weight=0.8>` and the published code's `<i>`, unless escaped by a backslash.
_BARE_SLOT = re.compile(r"(?<!\\)((?:\\\\)*)<(?:image|i)(?=\s*[|>])")


def read_prompts(
    prompt: PromptLike | Sequence[PromptLike],
    images: ImageLike | Sequence[ImageLike | Sequence[ImageLike] | None] | None = None,
) -> tuple[list[Prompt], list[PromptImages]]:
    """Return prompts, and the images of each in reading order.

    `images` is one image or a list for one prompt, or a list with one entry per prompt.

    Raises: PromptError, UsageError, ImageError.
    """
    given = _as_list(prompt)
    if isinstance(prompt, str | Prompt):
        groups = [None if images is None else _as_group(images)]
    elif images is None:
        groups = [None] * len(given)
    else:
        entries = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        if len(entries) != len(given):
            raise UsageError(f"{len(given)} prompts but {len(entries)} entries of images; give one for each prompt")
        groups = [None if entry is None else _as_group(entry) for entry in entries]
    prompts = [_parse(text) for text in given]
    return prompts, [_images_of(*pair) for pair in zip(prompts, groups, strict=True)]


def read_negatives(negative_prompt: PromptLike | Sequence[PromptLike] | None, num_prompts: int) -> list[Prompt]:
    """Return one negative prompt per prompt; a single one is used for all, None is empty.

    Raises: UsageError, PromptError for images in it.
    """
    given = _as_list(negative_prompt if negative_prompt is not None else "")
    if len(given) == 1:
        given = given * num_prompts
    if len(given) != num_prompts:
        raise UsageError(f"{num_prompts} prompts but {len(given)} negative prompts; give one for each, or one for all")
    prompts = [_parse(text) for text in given]
    for prompt in prompts:
        if prompt.images:
            raise PromptError("a negative prompt takes text only", column=prompt.images[0].column, prompt=prompt.text)
    return [prompt if _words(prompt).strip() else Prompt(parts=()) for prompt in prompts]


def _as_list(prompt: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    given = [prompt] if isinstance(prompt, str | Prompt) else list(prompt)
    for one in given:
        if not isinstance(one, str | Prompt):
            raise UsageError(f"a prompt is text, not {type(one).__name__}")
    if not given:
        raise UsageError("there is no prompt: the list is empty")
    return given


def _as_group(images: object) -> list[ImageLike]:
    group = [images] if isinstance(images, Image.Image | str | Path) else images
    if not isinstance(group, Sequence) or not all(isinstance(one, Image.Image | str | Path) for one in group):
        raise UsageError("the images of a prompt must be PIL.Image or paths of files, one or a list of them")
    return list(group)


def _parse(prompt: PromptLike) -> Prompt:
    """Parse a prompt; slots without a number are numbered in reading order."""
    if isinstance(prompt, Prompt):
        return prompt
    parts = _BARE_SLOT.split(prompt)
    if len(parts) > 1 and re.search(r"(?<!\\)(?:\\\\)*<image:\s*-\d", prompt):
        raise PromptError("numbered and unnumbered image slots in one prompt; number all of them or none")
    # The split gives text and the backslashes before each slot in turn.
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    slots = [f"{escapes}<image:-{number}{text}" for number, (escapes, text) in enumerate(pairs, start=1)]
    return Prompt.parse(parts[0] + "".join(slots))


def _images_of(prompt: Prompt, group: list[ImageLike] | None) -> PromptImages:
    """Return the images of a prompt in reading order; without slots, given images replace the files it names."""
    refs = prompt.images
    if not any(ref.slot is not None for ref in refs):
        if group is None:
            return [_open(ref.path, ref.column, prompt) for ref in refs]
        if len(group) != len(refs):
            raise UsageError(f"the prompt has {len(refs)} image tag(s), but {len(group)} image(s) were given")
        return [_open(one, ref.column, prompt) for one, ref in zip(group, refs, strict=True)]
    group = group or []
    wanted = {ref.slot for ref in refs if ref.slot is not None}
    for slot in sorted(wanted | set(range(1, len(group) + 1))):
        if slot > len(group):
            raise UsageError(f"the prompt asks for image {slot}, but {len(group)} image(s) were given")
        if slot not in wanted:
            raise UsageError(f"image {slot} has no place in the prompt: write <image> or <image:-{slot}> there")
    return [_open(ref.path if ref.slot is None else group[ref.slot - 1], ref.column, prompt) for ref in refs]


def _open(image: ImageLike, column: int, prompt: Prompt) -> Image.Image:
    """Open an image as upright RGB.

    Raises: ImageError with the column of the tag.
    """
    try:
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        return open_image(find_image(str(image)))
    except ImageError as error:
        raise ImageError(str(error), column=column, prompt=prompt.text) from None


def _words(prompt: Prompt) -> str:
    return "".join(part for part in prompt.parts if isinstance(part, str))

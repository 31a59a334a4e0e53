"""What a Python caller may give as prompts and pictures, as parsed prompts and opened pictures. No torch.

"a <image:cat.png> in the snow"                        files, named in the text
"a <image> and a <image>", images=[cat, "dog.png"]     pictures given apart, in reading order (`<i>` is the same)
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
from kgcli.weights.shipped import find_picture

PromptLike = str | Prompt
PictureLike = Image.Image | str | Path
Pictures = list[Image.Image]
# `<image>`, `<image|weight=0.8>` and the published code's `<i>`, unless a backslash takes their meaning.
_BARE_SLOT = re.compile(r"(?<!\\)((?:\\\\)*)<(?:image|i)(?=\s*[|>])")


def read_prompts(
    prompt: PromptLike | Sequence[PromptLike],
    images: PictureLike | Sequence[PictureLike | Sequence[PictureLike] | None] | None = None,
) -> tuple[list[Prompt], list[Pictures]]:
    """Prompts, and for each its pictures in reading order.

    Pictures are given for one prompt as one or a list, for a list of prompts as a list with one entry each.

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
    return prompts, [_pictures_of(*pair) for pair in zip(prompts, groups, strict=True)]


def read_negatives(negative_prompt: PromptLike | Sequence[PromptLike] | None, num_prompts: int) -> list[Prompt]:
    """One negative prompt for each prompt; a single one serves all, None is no words at all.

    Raises: UsageError, PromptError for pictures in it.
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


def _as_group(images: object) -> list[PictureLike]:
    group = [images] if isinstance(images, Image.Image | str | Path) else images
    if not isinstance(group, Sequence) or not all(isinstance(one, Image.Image | str | Path) for one in group):
        raise UsageError("the images of a prompt are pictures (PIL.Image) or paths of files, one or a list of them")
    return list(group)


def _parse(prompt: PromptLike) -> Prompt:
    """A parsed prompt; slots without a number count up in reading order."""
    if isinstance(prompt, Prompt):
        return prompt
    parts = _BARE_SLOT.split(prompt)
    if len(parts) > 1 and re.search(r"(?<!\\)(?:\\\\)*<image:\s*-\d", prompt):
        raise PromptError("numbered and unnumbered image slots in one prompt; number all of them or none")
    # The split gives text and the backslashes before each slot in turn.
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    slots = [f"{escapes}<image:-{number}{text}" for number, (escapes, text) in enumerate(pairs, start=1)]
    return Prompt.parse(parts[0] + "".join(slots))


def _pictures_of(prompt: Prompt, group: list[PictureLike] | None) -> Pictures:
    """The pictures of a prompt in reading order; without slots, those given stand for the files it names."""
    refs = prompt.images
    if not any(ref.slot is not None for ref in refs):
        if group is None:
            return [_open(ref.path, ref.column, prompt) for ref in refs]
        if len(group) != len(refs):
            raise UsageError(f"the prompt has {len(refs)} image(s), {len(group)} picture(s) were given")
        return [_open(one, ref.column, prompt) for one, ref in zip(group, refs, strict=True)]
    group = group or []
    wanted = {ref.slot for ref in refs if ref.slot is not None}
    for slot in sorted(wanted | set(range(1, len(group) + 1))):
        if slot > len(group):
            raise UsageError(f"the prompt asks for picture {slot}, but {len(group)} picture(s) were given")
        if slot not in wanted:
            raise UsageError(f"picture {slot} has no place in the prompt: write <image> or <image:-{slot}> there")
    return [_open(ref.path if ref.slot is None else group[ref.slot - 1], ref.column, prompt) for ref in refs]


def _open(picture: PictureLike, column: int, prompt: Prompt) -> Image.Image:
    """An upright RGB picture.

    Raises: ImageError with the column of the tag.
    """
    try:
        if isinstance(picture, Image.Image):
            return upright_rgb(picture)
        return open_image(find_picture(str(picture)))
    except ImageError as error:
        raise ImageError(str(error), column=column, prompt=prompt.text) from None


def _words(prompt: Prompt) -> str:
    return "".join(part for part in prompt.parts if isinstance(part, str))

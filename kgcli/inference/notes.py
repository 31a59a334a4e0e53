"""Notes about a request that lies outside what its model was trained on; never errors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kgcli.config import SamplingConfig
from kgcli.data.prompt import Prompt
from kgcli.errors import KgError
from kgcli.weights.folder import ModelFolder
from kgcli.weights.shipped import DEFAULT_NAME
from kgcli.weights.words import WORD, KnownWords

MAX_SHOWN = 5  # words in a note
_IMAGE_LINK = re.compile(r"https?://\S{1,500}\.(?:png|jpe?g|webp|gif)\b", re.IGNORECASE)
_REFERRING = ("the", "this", "that", "same")  # before a noun that may have been named already


def notes_about(prompt: Prompt, sampling: SamplingConfig, model: ModelFolder) -> list[str]:
    """Return one line for each way in which a request lies outside what the model was trained on."""
    try:
        known = model.words
    except KgError as error:  # a damaged list must not keep anyone from generating
        return [*_links(prompt), f"{error}; it is ignored"]
    subjects = model.cfg.max_subjects if known is None or known.num_subjects is None else known.num_subjects
    notes = [*_links(prompt), *_subjects(prompt, model, known, subjects)]
    if known is not None:
        notes += [*_words(prompt, model, known), *_size(sampling, model, known)]
    return notes


def count_subjects(prompt: Prompt, known: KnownWords | None) -> int:
    """Return how many subjects a prompt asks for: its images, and its nouns that no image follows."""
    nouns = set(known.nouns) if known is not None else set()
    num, before, seen = 0, "", set()
    pending = False  # a noun that an image may follow
    for part in prompt.parts:
        if not isinstance(part, str):
            num += part.weight > 0 and not pending
            pending = False
            continue
        for word in WORD.findall(part.lower()):
            pending = word in nouns
            num += pending and not (before in _REFERRING and word in seen)
            seen |= {word} & nouns
            before = word
    return num


def _links(prompt: Prompt) -> Iterator[str]:
    for part in prompt.parts:
        if isinstance(part, str) and (link := _IMAGE_LINK.search(part)):
            yield f"{link.group()} is read as text; to use the image, download it and write <image:FILE>"


def _subjects(prompt: Prompt, model: ModelFolder, known: KnownWords | None, most: int | None) -> Iterator[str]:
    num = count_subjects(prompt, known)
    if most is not None and num > most:
        what = "images" if known is None else "subjects"
        yield (
            f"the prompt has {num} {what}, the model {model.name} was trained to combine at most {most}: it may leave "
            "out the others"
        )


def _words(prompt: Prompt, model: ModelFolder, known: KnownWords) -> Iterator[str]:
    text = _IMAGE_LINK.sub(" ", " ".join(part for part in prompt.parts if isinstance(part, str)))
    unknown = known.unknown(text)
    if unknown:
        shown = ", ".join(unknown[:MAX_SHOWN]) + (f" and {len(unknown) - MAX_SHOWN} more" * (len(unknown) > MAX_SHOWN))
        where = DEFAULT_NAME if model.name == DEFAULT_NAME else str(model.path)
        yield f"{model.name} was not trained on: {shown}; `kg models show {where}` lists the words it knows"


def _size(sampling: SamplingConfig, model: ModelFolder, known: KnownWords) -> Iterator[str]:
    if known.sizes and sampling.size not in known.sizes:
        sizes = " or ".join(f"{width} x {height}" for width, height in known.sizes)
        width, height = sampling.size
        yield f"{model.name} was trained for images of {sizes} pixels; at {width} x {height} they may be worse"

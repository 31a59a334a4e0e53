"""The parts of a prompt that an explanation maps: its references, then its words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

from kgcli.data.prompt import ImageRef, Prompt

MAX_WORDS = 40  # words of a prompt that get maps
_WORD = re.compile(r"[^\W_](?:[\w'-]*[^\W_])?")


@dataclass(frozen=True)
class Part:
    """One reference or word of a prompt, and the prompt without it."""

    label: str  # name of the image file, or the word
    image: int | None  # number of the image in reading order, from 1; None for a word
    without: Prompt
    images: tuple[int, ...]  # indices of the images that stay


def parts_of(prompt: Prompt, *, words: bool = True) -> tuple[Part, ...]:
    """Return the references of a prompt in reading order, then its words (at most MAX_WORDS)."""
    count = len(prompt.images)
    everything = tuple(range(count))
    found: list[Part] = []
    numbers = iter(range(count))
    for at, part in enumerate(prompt.parts):
        if isinstance(part, ImageRef):
            number = next(numbers)
            others = tuple(index for index in everything if index != number)
            found.append(Part(part.name, number + 1, _replaced(prompt, at, None), others))
    for at, match in islice(_words(prompt), MAX_WORDS if words else 0):
        text = str(prompt.parts[at])
        rest = text[: match.start()].rstrip() + " " + text[match.end() :].lstrip()
        found.append(Part(match.group(), None, _replaced(prompt, at, rest), everything))
    return tuple(found)


def _words(prompt: Prompt) -> list[tuple[int, re.Match[str]]]:
    """Return the words of a prompt, each with the index of its text."""
    texts = [(at, part) for at, part in enumerate(prompt.parts) if isinstance(part, str)]
    return [(at, match) for at, text in texts for match in _WORD.finditer(text)]


def _replaced(prompt: Prompt, at: int, text: str | None) -> Prompt:
    """Return the prompt with another text in place of one part, or without it; texts that meet are joined."""
    parts: list[str | ImageRef] = []
    for index, part in enumerate(prompt.parts):
        kept = text if index == at else part
        if isinstance(kept, str) and parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1].rstrip()} {kept.lstrip()}"
        elif kept is not None:
            parts.append(kept)
    return Prompt(parts=tuple(part for part in parts if not isinstance(part, str) or part.strip()), text=prompt.text)

"""The list in a model's folder of all that it was trained on: words, number of subjects and image sizes.

A folder may hold `words.json`; a model without one gets no notes about its prompts.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from kgcli.config import MAX_SIDE, Strict
from kgcli.errors import IncompatibleError
from kgcli.reading import read_json

WORDS_NAME = "words.json"
MAX_BYTES = 2**20
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")

Phrases = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=80)], ...], Field(max_length=5000)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class KnownWords(Strict):
    """The words, subjects and sizes that a model was trained on. Phrases are as they stand in prompts."""

    nouns: Phrases
    scenes: Phrases = ()
    styles: Phrases = ()
    accessories: Phrases = ()
    colours: Phrases = ()
    shades: Phrases = ()  # of colours, and shapes: "dark", "tall"
    patterns: Phrases = ()
    other: Phrases = ()  # words that need no place in a list: articles, prepositions, "picture"
    num_subjects: Annotated[int, Field(ge=1, le=1000)] | None = None  # in one image, at most
    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(max_length=100)] = ()  # width and height, pixels

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The lists of content words, by name."""
        names = ("nouns", "scenes", "styles", "accessories", "colours", "shades", "patterns")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @cached_property
    def words(self) -> frozenset[str]:
        """All single words of all lists, in lower case."""
        phrases = [phrase for phrases in (*self.lists.values(), self.other) for phrase in phrases]
        return frozenset(word for phrase in phrases for word in words_of(phrase))

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that are in no list, once each, in order."""
        return [word for word in dict.fromkeys(words_of(text)) if word not in self.words]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without digits and punctuation."""
    return WORD.findall(text.lower())


def read_words(folder: Path) -> KnownWords | None:
    """Read the list of a model folder; None if it has none.

    Raises: MissingError if it is damaged or too large; IncompatibleError for other keys or values.
    """
    path = folder / WORDS_NAME
    if not path.is_file():
        return None
    try:
        return KnownWords.model_validate(read_json(path, max_bytes=MAX_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IncompatibleError(f"{path} is not a list of known words: {where or 'it'}: {first['msg']}") from None

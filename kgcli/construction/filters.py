"""Filters of images and captions; each drops samples for a reason that is counted."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kgcli.construction.stage import Draft, Options, Place
from kgcli.errors import UsageError
from kgcli.reading import read_text

MAX_BLOCKLIST = 16 * 2**20  # bytes


class Filter:
    """A filter by one rule: `reason` gives why a sample is dropped, or nothing."""

    options_type: type[Options] = Options

    def __init__(self, options: Any, place: Place) -> None:
        self.options = options

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Drop the samples that have a reason."""
        for draft in drafts:
            if reason := self.reason(draft):
                draft.drop(reason)

    def reason(self, draft: Draft) -> str:
        """Return why to drop a sample, or an empty text."""
        raise NotImplementedError


class SizeOptions(Options):
    """Smallest image."""

    at_least: int = Field(default=256, ge=1)  # pixels of the shorter side


class Size(Filter):
    """Drops small images."""

    options_type = SizeOptions

    def reason(self, draft: Draft) -> str:
        """Return a reason for a short side."""
        return f"under {self.options.at_least} pixels" if min(draft.image.size) < self.options.at_least else ""


class AspectOptions(Options):
    """Longest image."""

    at_most: float = Field(default=2.0, ge=1)  # longer side over shorter


class Aspect(Filter):
    """Drops long images, of which a square shows little."""

    options_type = AspectOptions

    def reason(self, draft: Draft) -> str:
        """Return a reason for a long side."""
        long = max(draft.whole_size) > self.options.at_most * min(draft.whole_size)
        return f"sides over {self.options.at_most:g} : 1" if long else ""


class BlankOptions(Options):
    """Least contrast."""

    at_least: float = Field(default=4.0, ge=0)  # standard deviation of the grey values, of 255


class Blank(Filter):
    """Drops images of one colour, such as the placeholders of removed ones."""

    options_type = BlankOptions

    def reason(self, draft: Draft) -> str:
        """Return a reason for an image of next to no contrast."""
        return "blank" if float(np.asarray(draft.image.convert("L")).std()) < self.options.at_least else ""


class WordsOptions(Options):
    """Length of a caption."""

    at_least: int = Field(default=2, ge=0)  # words
    at_most: int = Field(default=64, ge=1)


class Words(Filter):
    """Drops captions that are too short or too long."""

    options_type = WordsOptions

    def reason(self, draft: Draft) -> str:
        """Return a reason by the number of words."""
        num = len(draft.caption.split())
        if num < self.options.at_least:
            return f"under {self.options.at_least} words"
        return f"over {self.options.at_most} words" if num > self.options.at_most else ""


class ScriptOptions(Options):
    """Writing system."""

    script: str = "LATIN"  # as Unicode names its letters: LATIN, CYRILLIC, CJK ...
    at_least: float = Field(default=0.9, ge=0, le=1)  # fraction of the letters


class Script(Filter):
    """Drops captions in other writing systems; needs no library."""

    options_type = ScriptOptions

    def reason(self, draft: Draft) -> str:
        """Return a reason for letters of other scripts."""
        letters = [_script(character) for character in draft.caption if character.isalpha()]
        of_script = sum(name == self.options.script for name in letters)
        few = not letters or of_script < self.options.at_least * len(letters)
        return f"not in {self.options.script} letters" if few else ""


class LanguageOptions(Options):
    """Language of the captions."""

    language: str = "en"  # ISO 639-1


class Language(Filter):
    """Drops captions in other languages, as the library langdetect sees them."""

    options_type = LanguageOptions

    def __init__(self, options: LanguageOptions, place: Place) -> None:
        super().__init__(options, place)
        try:
            import langdetect
        except ImportError:
            raise UsageError("the filter language needs langdetect: pip install langdetect") from None
        langdetect.DetectorFactory.seed = 0  # its answers depend on random numbers
        self._library = langdetect

    def reason(self, draft: Draft) -> str:
        """Return a reason for another language, or none that is seen."""
        try:
            found = self._library.detect(draft.caption)
        except self._library.LangDetectException:
            return "language unknown"
        return "" if found == self.options.language else f"not in the language {self.options.language}"


class BlocklistOptions(Options):
    """Words that no caption may hold."""

    file: str  # one word or phrase a line


class Blocklist(Filter):
    """Drops captions that hold a word of a list, as offensive ones."""

    options_type = BlocklistOptions

    def __init__(self, options: BlocklistOptions, place: Place) -> None:
        super().__init__(options, place)
        lines = read_text(Path(options.file).expanduser(), max_bytes=MAX_BLOCKLIST).splitlines()
        words = [re.escape(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
        if not words:
            raise UsageError(f"the blocklist {options.file} holds no words")
        self._pattern = re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)

    def reason(self, draft: Draft) -> str:
        """Return a reason for a word of the list, without repeating it."""
        return "a word of the blocklist" if self._pattern.search(draft.caption) else ""


class DuplicatesOptions(Options):
    """How alike two images or captions are to be one."""

    image_bits: int = Field(default=2, ge=-1, le=3)  # of 64 of the perceptual hash that may differ; -1: off
    caption_likeness: float = Field(default=2.0, ge=0.5, le=2)  # Jaccard of word pairs; above 1: off


class Duplicates(Filter):
    """Drops images and captions that came before, in any shard of the data set; the driver finds them beforehand."""

    options_type = DuplicatesOptions

    def reason(self, draft: Draft) -> str:
        """Return what the sample repeats."""
        return draft.repeated


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split(" ")[0].split("-")[0]

"""Stages that need no model: the given caption, and entities by rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from kgcli.construction.stage import Draft, Options, Place
from kgcli.data.importers.published import NOT_ENTITIES, place_tags

_DETERMINERS = "a an the this that these those some another each every his her its their my your our"
_NUMBERS = "one two three four five six seven eight nine ten many several both pair couple"
_STARTS = frozenset(f"{_DETERMINERS} {_NUMBERS}".split())
# After these comes where something is, which is no foreground object.
_PLACES = frozenset(
    "in on at by near under above behind beside inside outside against along across over below beneath into onto "
    "around through between toward towards from during".split()
)
_LINKS = frozenset("and or with of to for as next holding wearing is are was were while that who which".split())
_NOT_THINGS = frozenset(
    "image picture photo photograph photography painting drawing illustration view background front side top bottom "
    "middle center left right close day night group bunch lot kind type set".split()
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*|[,.;:!?()]")


class Given:
    """The caption that the data came with."""

    options_type = Options

    def __init__(self, options: Options, place: Place) -> None:
        pass

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Drop the samples without a caption."""
        for draft in drafts:
            if not draft.caption.strip():
                draft.drop("no caption")


class RulesOptions(Options):
    """How many entities."""

    at_most: int = Field(default=8, ge=1)


class Rules:
    """Entities of simple English captions: the last noun of each phrase that no word of place begins."""

    options_type = RulesOptions

    def __init__(self, options: Any, place: Place) -> None:
        self.options = options

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Find the entities of each caption."""
        for draft in drafts:
            place_entities(draft, nouns_by_rules(draft.caption), self.options.at_most)


def place_entities(draft: Draft, nouns: Sequence[str], at_most: int) -> None:
    """Note those nouns of a draft that can be placed in its caption, by the rules of the published loader."""
    unique = list(dict.fromkeys(noun for noun in nouns if noun))
    draft.entities = place_tags(draft.caption, unique)[:at_most]
    if not draft.entities:
        draft.drop("no entity in the caption")


def nouns_by_rules(caption: str) -> list[str]:
    """Return the nouns of a caption's foreground objects, in order.

    A phrase starts at an article, number or possessive and ends before a linking word, a word ending in -ing, another
    start, or punctuation; its last word is the noun.
    """
    nouns: list[str] = []
    phrase: list[str] = []
    of_place = False
    for token in [*_WORD.findall(caption), "."]:
        word = token.lower()
        starts = word in _STARTS
        if starts or word in _LINKS or word in _PLACES or not word[0].isalpha() or (phrase and word.endswith("ing")):
            noun = phrase[-1] if phrase else ""
            if noun and not of_place and noun.lower() not in _NOT_THINGS | NOT_ENTITIES:
                nouns.append(noun)
            if phrase or not starts:
                of_place = word in _PLACES
            phrase = []
        else:
            phrase.append(token)
    return nouns

"""Captions, edit instructions and stories, all derived from a `Spec`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np

from kgcli.world.looks import shade_of, shape_of
from kgcli.world.spec import Placed, Spec, Subject
from kgcli.world.tables import ACCESSORIES, COLOURS, SCENES, STYLES

Rng = np.random.Generator
Fragments = tuple[str | None, ...]  # None stands for the next image
Exact = Literal["shape", "body", "pattern"]  # what shades and shapes tell: proportions, and the two colours

EDITS = {"scene": 0.2, "accessory": 0.2, "colour": 0.35, "style": 0.25}  # kind -> fraction; the hardest come most often
MAX_WORDS = 28  # of a caption; the nano CLIP reads 30 words of the world, each a token or, seldom, two
SHADED = 0.5  # of the subjects whose colours a training caption names, the fraction whose shades it tells
ALL_EXACT: tuple[Exact, ...] = ("shape", "body", "pattern")
# What `describe` tells of a subject where there are words for all of it, and where there are fewer and fewer.
_LEVELS: tuple[dict[str, Any], ...] = (
    {"colours": True, "exact": ALL_EXACT},
    {"colours": True, "exact": ("body",)},
    {"colours": True},
    {"colours": True, "patterns": False},
    {"colours": False},
)
TO_STYLE = {
    "minecraft": ("put it in Minecraft", "turn it into Minecraft"),
    "oil": ("turn it into an oil painting", "make it an oil painting"),
    "watercolor": ("turn it into a watercolor", "make it a watercolor"),
}


def describe(
    subject: Subject,
    *,
    colours: bool,
    patterns: bool = True,
    accessory: bool = True,
    exact: Collection[Exact] = (),
) -> str:
    """Return one instance in words: its noun, with `colours` also its colour and, with `patterns` too, its pattern.

    Args:
        exact: what of it shades and shapes tell, where its colours are told at all
    """
    shown = exact if colours else ()
    words = _with_article(_adjectives(subject, colours, shown) + subject.noun)
    return words + _extras(subject, colours and patterns, accessory, shown)


def caption(spec: Spec, rng: Rng, *, colours: float = 0.8, shades: float = 0.0) -> str:
    """Return a caption of the whole image.

    Args:
        colours: probability that a subject's colour and pattern are named
        shades: probability that shades and shapes tell these and its proportions exactly, where they are named
    """
    subjects = []
    for placed in spec.subjects:
        named, exact = rng.random() < colours, shades > 0 and rng.random() < shades
        subjects.append(describe(placed.subject, colours=named, exact=ALL_EXACT if exact else ()))
    return _sentence(_join(subjects, rng), spec, rng)


def short_caption(spec: Spec, rng: Rng, *, colours: float = 0.8, shades: float = 0.0) -> str:
    """Return a caption of at most MAX_WORDS words, which fits a CLIP text encoder; other arguments as of `caption`."""
    while True:
        words = caption(spec, rng, colours=colours, shades=shades)
        if num_words(words) <= MAX_WORDS:
            return words
        shades *= 0.7
        colours *= 0.7  # three subjects with patterns and accessories are too much to tell


def compositional(spec: Spec, rng: Rng, *, drop: bool) -> Fragments:
    """Return the caption with each entity followed by its image; with `drop` the image takes the entity's place.

    The words never name a colour: those have to come from the image.
    """
    pieces: list[str | None] = [str(rng.choice(["", "", "a picture of "]))]
    for number, placed in enumerate(spec.subjects):
        if number:
            pieces.append(" and ")
        if not drop:
            pieces.append(_with_article(placed.subject.noun) + " ")
        elif rng.random() < 0.3:  # "a <image>", as a caption with its noun cut out reads; or the image alone
            pieces.append("a ")
        pieces.append(None)
        pieces.append(_extras(placed.subject, False, True))
    pieces.append(" " + _where(spec, rng))
    return _merge(pieces)


def in_words(fragments: Fragments, spec: Spec) -> str:
    """Return a `compositional` prompt of `spec` as a caption: each image, and the noun before it, as words for what it
    shows, exactly. Shades, then patterns, then colours are left out where it would be longer than MAX_WORDS.
    """

    def told(level: dict[str, Any]) -> str:
        subjects = (placed.subject for placed in spec.subjects)
        return "".join(
            describe(next(subjects), accessory=False, **level) if piece is None else _without_entity(piece, spec)
            for piece in fragments
        )

    return _fitting(told)


def num_words(words: str) -> int:
    """Return the number of words of a caption; commas count."""
    return len(words.replace(",", " ,").split())


def tell(spec: Spec) -> str:
    """Return a caption of an image that tells of it what MAX_WORDS leaves room for, and always in the same words."""

    def told(level: dict[str, Any]) -> str:
        subjects = " and ".join(describe(placed.subject, **level) for placed in spec.subjects)
        return " ".join(filter(None, (subjects, SCENES[spec.scene] if spec.scene else "", STYLES[spec.style])))

    return _fitting(told)


def edit(before: Spec, rng: Rng) -> tuple[Spec, str]:
    """Return the spec after one edit of an image of one subject, and its instruction."""
    placed = before.subjects[0]
    kind = str(rng.choice(list(EDITS), p=list(EDITS.values())))
    if kind == "accessory" and placed.subject.accessory is None:
        worn = str(rng.choice(list(ACCESSORIES)))
        asked = rng.choice([f"add {_worn(worn)}", f"give it {_worn(worn)}", f"put {_worn(worn)} on it"])
        return _changed(before, placed, accessory=worn), str(asked)
    if kind == "colour":
        colour = str(rng.choice([name for name in COLOURS if name != placed.subject.look.colour_name]))
        asked = rng.choice([f"make it {colour}", f"turn it {colour}", f"change its color to {colour}"])
        return _changed(before, placed, recoloured=colour), str(asked)
    if kind == "style" and before.style == "photo":
        style = str(rng.choice(list(TO_STYLE)))
        return dataclasses.replace(before, style=style), str(rng.choice(TO_STYLE[style]))
    scene = str(rng.choice([name for name in SCENES if name != before.scene]))
    asked = rng.choice([f"put it {SCENES[scene]}", f"place it {SCENES[scene]}", f"move it {SCENES[scene]}"])
    return dataclasses.replace(before, scene=scene), str(asked)


def story(specs: list[Spec], rng: Rng) -> Fragments:
    """Return a short document about one instance, an image before each sentence; colours are never named."""
    noun = specs[0].subjects[0].subject.noun
    pieces: list[str | None] = [
        str(rng.choice(["a story about ", "look at ", "this is "])) + _with_article(noun) + ". "
    ]
    for number, spec in enumerate(specs):
        who = f"the {'same ' if number else ''}{noun}" if rng.random() < 0.7 else "it"
        pieces += [None, f" {who}{_extras(spec.subjects[0].subject, False, True)} {_where(spec, rng)}. "]
    return _merge(pieces)


def as_typed(fragments: Fragments, rng: Rng) -> Fragments:
    """Return the words as people type them: sometimes a capital at the start, or none in Minecraft."""
    capital, lower = rng.random() < 0.2, rng.random() < 0.3
    typed = []
    for piece in fragments:
        if piece and capital:
            start = len(piece) - len(piece.lstrip())
            piece = piece[:start] + piece[start : start + 1].upper() + piece[start + 1 :]
            capital = False
        typed.append(piece.replace("Minecraft", "minecraft") if piece and lower else piece)
    return tuple(typed)


def _fitting(told: Callable[[dict[str, Any]], str]) -> str:
    """Return the first of `_LEVELS` in words that is not longer than MAX_WORDS; the last if all are."""
    words = ""
    for level in _LEVELS:
        words = told(level)
        if num_words(words) <= MAX_WORDS:
            break
    return words


def _sentence(subjects: str, spec: Spec, rng: Rng) -> str:
    opening = str(rng.choice(["", "", "", "a picture of ", "a photo of " if spec.style == "photo" else "an image of "]))
    return f"{opening}{subjects} {_where(spec, rng)}".strip()


def _where(spec: Spec, rng: Rng) -> str:
    scene = SCENES[spec.scene] if spec.scene else ""
    if spec.scene == "studio" and rng.random() < 0.3:
        scene = ""  # a thing with no place named stands on white
    return f"{scene} {STYLES[spec.style]}".strip()


def _join(subjects: list[str], rng: Rng) -> str:
    if len(subjects) == 1:
        return subjects[0]
    if len(subjects) > 2:
        return ", ".join(subjects[:-1]) + " and " + subjects[-1]
    left, right = subjects
    forms = [f"{left} and {right}", f"{left} and {right}", f"{left} next to {right}"]
    return str(rng.choice([*forms, f"{left} on the left and {right} on the right"]))


def _adjectives(subject: Subject, colours: bool, exact: Collection[Exact] = ()) -> str:
    look = subject.look
    words = shape_of(look) if "shape" in exact else []
    words += shade_of(look.colour_name, look.colour) if "body" in exact else []
    return "".join(f"{word} " for word in [*words, *([look.colour_name] if colours else [])])


def _extras(subject: Subject, pattern: bool, accessory: bool, exact: Collection[Exact] = ()) -> str:
    look, words = subject.look, ""
    if pattern and look.second_name and look.second:
        shades = shade_of(look.second_name, look.second) if "pattern" in exact else []
        words += f" with {' '.join([*shades, look.second_name])} {look.pattern}"
    if accessory and subject.accessory:
        words += f" wearing {_worn(subject.accessory)}"
    return words


def _worn(accessory: str) -> str:
    return accessory if accessory == "sunglasses" else _with_article(accessory)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _without_entity(piece: str, spec: Spec) -> str:
    """Return the words between images without the article and noun that name the next image."""
    nouns = "|".join(placed.subject.noun for placed in spec.subjects)
    return re.sub(rf"\b(an? (({nouns}) )?)?$", "", piece, flags=re.IGNORECASE)


def _changed(spec: Spec, placed: Placed, **changes: str) -> Spec:
    subject = dataclasses.replace(placed.subject, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(spec, subjects=(dataclasses.replace(placed, subject=subject),))


def _merge(pieces: list[str | None]) -> Fragments:
    merged: list[str | None] = []
    for piece in pieces:
        if piece is not None and merged and merged[-1] is not None:
            merged[-1] += piece
        elif piece != "":
            merged.append(piece)
    return tuple(merged)

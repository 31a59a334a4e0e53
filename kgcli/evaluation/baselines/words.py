"""Prompts of text-only methods: an item's words with a name in place of the subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.plan import Item
from kgcli.weights.shipped import IMAGE_SUFFIXES

MARK = "<image>"


def name_subject(item: Item, name: str) -> str:
    """Return the scored text with `name` for its class noun: "a red backpack" gives "a red <subject>".

    Where that text lacks the noun, `a NAME` replaces the image in the input text.
    """
    noun = _noun_in(item)
    if noun is None:
        words = re.sub(rf"(?:\b(?:an?|the)\s+)?{MARK}", f"a {name}", item.input_text, count=1)
        return " ".join(words.split())
    before = re.sub(r"\ban(\s+)$", r"a\1", item.scored_text[: noun.start()])  # an owl, a <subject>
    return before + name + item.scored_text[noun.end() :]


def split_subject(item: Item) -> tuple[str, str]:
    """Split an item into subject and scene: "a red backpack in the snow" gives "red backpack" and "in the snow"."""
    noun = _noun_in(item)
    if noun is None:
        return item.class_noun, " ".join(item.input_text.replace(MARK, " ").split()).lstrip(", ")
    words = re.sub(r"^.*\b(?:an?|the)\s+", "", item.scored_text[: noun.start()], flags=re.IGNORECASE)
    return words + noun.group(), item.scored_text[noun.end() :].strip(" ,")


def reference_names(items: Sequence[Item], data: Path, *, every: bool) -> list[str]:
    """Return a subject's reference images: those in its prompts, or with `every` all in their folder, by name.

    Raises:
        IncompatibleError: a prompt does not have exactly one image.
        MissingError: an image is missing.
    """
    for item in items:
        if len(item.inputs) != 1:
            raise IncompatibleError(
                f"{item.path}: its prompt has {len(item.inputs)} images; a method that learns one subject takes "
                "prompts with one"
            )
    names = {item.inputs[0] for item in items}
    if every:
        folders = {Path(name).parent for name in names}
        beside = (path for folder in folders for path in (data / folder).glob("*"))
        names = {path.relative_to(data).as_posix() for path in beside if path.suffix.lower() in IMAGE_SUFFIXES}
    missing = [name for name in sorted(names) if not (data / name).is_file()]
    if missing or not names:
        raise MissingError(f"{data} has no image {missing[0] if missing else 'of the subject'}")
    return sorted(names)


def _noun_in(item: Item) -> re.Match[str] | None:
    """Find the class noun in the scored text."""
    if not item.class_noun:
        return None
    return re.search(rf"\b{re.escape(item.class_noun)}\b", item.scored_text, flags=re.IGNORECASE)

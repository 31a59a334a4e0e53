"""What a method that reads text alone is told: an item's words, with a name where the subject belongs. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.plan import Item
from kgcli.weights.shipped import PICTURE_SUFFIXES

MARK = "<image>"


def name_subject(item: Item, name: str) -> str:
    """The text people read, with `name` for its class noun: "a red backpack" gives "a red <subject>".

    Where that text does not say the noun, `a NAME` takes the place of the picture in what the method reads.
    """
    noun = _noun_in(item)
    if noun is None:
        told = re.sub(rf"(?:\b(?:an?|the)\s+)?{MARK}", f"a {name}", item.input_text, count=1)
        return " ".join(told.split())
    before = re.sub(r"\ban(\s+)$", r"a\1", item.scored_text[: noun.start()])  # an owl, a <subject>
    return before + name + item.scored_text[noun.end() :]


def split_subject(item: Item) -> tuple[str, str]:
    """What is shown and where: "a red backpack in the snow" gives "red backpack" and "in the snow"."""
    noun = _noun_in(item)
    if noun is None:
        return item.class_noun, " ".join(item.input_text.replace(MARK, " ").split()).lstrip(", ")
    words = re.sub(r"^.*\b(?:an?|the)\s+", "", item.scored_text[: noun.start()], flags=re.IGNORECASE)
    return words + noun.group(), item.scored_text[noun.end() :].strip(" ,")


def reference_names(items: Sequence[Item], data: Path, *, every: bool) -> list[str]:
    """The pictures a subject is learnt from: those in its prompts, or with `every` all in their folder, by name.

    Raises:
        IncompatibleError: a prompt has pictures of several subjects, or none.
        MissingError: a picture is not there.
    """
    for item in items:
        if len(item.inputs) != 1:
            raise IncompatibleError(
                f"{item.path}: its prompt has {len(item.inputs)} pictures; a method that learns one subject by its "
                "pictures takes prompts with one"
            )
    names = {item.inputs[0] for item in items}
    if every:
        folders = {Path(name).parent for name in names}
        beside = (path for folder in folders for path in (data / folder).glob("*"))
        names = {path.relative_to(data).as_posix() for path in beside if path.suffix.lower() in PICTURE_SUFFIXES}
    missing = [name for name in sorted(names) if not (data / name).is_file()]
    if missing or not names:
        raise MissingError(f"{data} has no picture {missing[0] if missing else 'of the subject'}")
    return sorted(names)


def _noun_in(item: Item) -> re.Match[str] | None:
    """Where the class noun is said."""
    if not item.class_noun:
        return None
    return re.search(rf"\b{re.escape(item.class_noun)}\b", item.scored_text, flags=re.IGNORECASE)

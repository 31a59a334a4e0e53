"""The words of the world, as the `words.json` of a model that was trained on it.

Write it with `python -m kgcli.world.words kgcli/nano/model --subjects 2`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kgcli.world.tables import (
    ACCESSORIES,
    BASE_ONLY_NOUNS,
    COLOURS,
    PATTERNS,
    SCENES,
    SEEN_NOUNS,
    SHADES,
    SHAPES,
    SIZE,
    STYLES,
)

# Words around the others: those of the world's captions, edits and stories, and the common ones of English, which
# change nothing that a list could tell.
SENTENCES = (
    "a an the picture photo image of with wearing on in at to next left right and under front same look this is story "
    "about it its add give put make turn change color place move into"
)
COMMON = (
    "i me my mine we us our you your he him his she her they them their that these those there here some any all both "
    "each every other another one two three who which what as by for from off onto over near beside behind between "
    "above below around through out up down inside outside or but so not no than then too very just also only again "
    "now be am are was were been being has have had do does did done can could will would should may might must let "
    "please show see draw paint generate create images pictures photos photograph style colour colored coloured "
    "scene background drawing wear wears"
)


def known_words(size: int, num_subjects: int) -> dict[str, Any]:
    """Return the contents of `words.json` for images of size x size pixels with at most `num_subjects` subjects."""
    return {
        "nouns": [*SEEN_NOUNS, *BASE_ONLY_NOUNS],
        "scenes": list(SCENES.values()),
        "styles": [words for words in STYLES.values() if words],
        "accessories": list(ACCESSORIES),
        "colours": list(COLOURS),
        "shades": [*SHADES, *SHAPES],
        "patterns": [name for name in PATTERNS if name != "plain"],
        "other": sorted({*SENTENCES.split(), *COMMON.split()}),
        "num_subjects": num_subjects,
        "sizes": [[size, size]],
    }


def main() -> None:
    """Write the list into a model folder."""
    parser = argparse.ArgumentParser(description="Write the words.json of a model of the nano world.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=2, help="most subjects in one image")
    args = parser.parse_args()
    text = json.dumps(known_words(SIZE, args.subjects), indent=1, ensure_ascii=False)
    (args.folder / "words.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

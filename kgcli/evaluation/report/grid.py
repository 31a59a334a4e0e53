"""Grids of prompts and images as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kgcli.evaluation.benchmarks.skills import Case
from kgcli.inference.output import write_image
from kgcli.world.rendering import render
from kgcli.world.tables import SIZE

COLUMNS = 10
SMALL = SIZE // 2  # pixels of an image of the prompt; an answer has SIZE
MARGIN = 6  # pixels
LINE = 11  # pixels, of a line of text
LETTER = 6  # pixels, of a letter
NUM_LINES = 3


def write_cases(answers: Sequence[tuple[Case, Image.Image]], path: Path) -> None:
    """Write a grid with the prompt's images, the answer, and the prompt's words below in each cell.

    Beside the answer to a prompt without images stands its true render.
    """
    wide, high = SMALL + SIZE + 3 * MARGIN, SIZE + 2 * MARGIN + NUM_LINES * LINE
    num_rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * wide, num_rows * high), "white")
    for place, (case, image) in enumerate(answers):
        left, top = place % COLUMNS * wide, place // COLUMNS * high
        _paste_case(sheet, left + MARGIN, top + MARGIN, case, image)
    write_image(path, sheet, None)


def write_rows(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write rows of images of one size."""
    pixels = [np.concatenate([np.asarray(image.convert("RGB")) for image in row], axis=1) for row in rows]
    write_image(path, Image.fromarray(np.concatenate(pixels)), None)


def _paste_case(sheet: Image.Image, left: int, top: int, case: Case, answer: Image.Image) -> None:
    for number, image in enumerate(case.images[:2] or [render(case.spec).image]):
        sheet.paste(image.resize((SMALL, SMALL), Image.Resampling.BICUBIC), (left, top + number * SMALL))
    sheet.paste(answer.resize((SIZE, SIZE), Image.Resampling.BICUBIC), (left + SMALL + MARGIN, top))
    lines = textwrap.wrap(case.words, (SMALL + SIZE + MARGIN) // LETTER + 1)[:NUM_LINES]
    for number, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top + SIZE + 2 + number * LINE), line, fill="black")

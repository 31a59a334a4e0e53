"""Grids of prompts and images as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kgcli.evaluation.benchmarks.skills import Case
from kgcli.inference.output import write_image

COLUMNS = 10
LARGE, SMALL = 96, 48  # pixels, of an answer and of a prompt's image
MARGIN = 6  # pixels
LINE = 11  # pixels, of a line of text
LETTERS = 26  # in a line
NUM_LINES = 3
CELL = (SMALL + LARGE + 3 * MARGIN, LARGE + 2 * MARGIN + NUM_LINES * LINE)


def write_cases(answers: Sequence[tuple[Case, Image.Image]], path: Path) -> None:
    """Write a grid with the prompt's images, the answer, and the prompt's words below in each cell."""
    num_rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], num_rows * CELL[1]), "white")
    for place, (case, image) in enumerate(answers):
        left, top = place % COLUMNS * CELL[0], place // COLUMNS * CELL[1]
        _paste_case(sheet, left + MARGIN, top + MARGIN, case, image)
    write_image(path, sheet, None)


def write_rows(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write rows of images of one size, enlarged twice."""
    pixels = [np.concatenate([np.asarray(image.convert("RGB")) for image in row], axis=1) for row in rows]
    sheet = Image.fromarray(np.concatenate(pixels))
    write_image(path, sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST), None)


def _paste_case(sheet: Image.Image, left: int, top: int, case: Case, answer: Image.Image) -> None:
    for number, image in enumerate(case.images[:2]):
        sheet.paste(image.resize((SMALL, SMALL), Image.Resampling.BICUBIC), (left, top + number * SMALL))
    sheet.paste(answer.resize((LARGE, LARGE), Image.Resampling.BICUBIC), (left + SMALL + MARGIN, top))
    lines = textwrap.wrap(case.words, LETTERS)[:NUM_LINES]
    for number, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top + LARGE + 2 + number * LINE), line, fill="black")

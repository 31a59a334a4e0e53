"""A labelled grid of prompts, the pictures in them and what was made of them, for looking at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from kgcli.evaluation.benchmarks.skills import Case
from kgcli.inference.output import write_picture

COLUMNS = 10
LARGE, SMALL = 96, 48  # pixels, of an answer and of a prompt's picture
MARGIN = 6  # pixels
LINE = 11  # pixels, of a line of text
LETTERS = 26  # in a line
NUM_LINES = 3
CELL = (SMALL + LARGE + 3 * MARGIN, LARGE + 2 * MARGIN + NUM_LINES * LINE)


def draw_grid(answers: Sequence[tuple[Case, Image.Image]], path: Path) -> None:
    """Write the grid: in each cell the prompt's pictures, the answer, and the prompt's words below."""
    num_rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], num_rows * CELL[1]), "white")
    for place, (case, picture) in enumerate(answers):
        left, top = place % COLUMNS * CELL[0], place // COLUMNS * CELL[1]
        _draw_cell(sheet, left + MARGIN, top + MARGIN, case, picture)
    write_picture(path, sheet, None)


def _draw_cell(sheet: Image.Image, left: int, top: int, case: Case, picture: Image.Image) -> None:
    for number, image in enumerate(case.images[:2]):
        sheet.paste(image.resize((SMALL, SMALL), Image.Resampling.BICUBIC), (left, top + number * SMALL))
    sheet.paste(picture.resize((LARGE, LARGE), Image.Resampling.BICUBIC), (left + SMALL + MARGIN, top))
    lines = textwrap.wrap(case.words, LETTERS)[:NUM_LINES]
    for number, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top + LARGE + 2 + number * LINE), line, fill="black")

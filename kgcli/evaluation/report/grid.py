"""Grids of prompts and images as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kgcli.evaluation.benchmarks.skills import Case
from kgcli.inference.output import write_image
from kgcli.world.spec import render

COLUMNS = 10
LEAST_LARGE = 96  # pixels of an answer; those of a larger world keep their own size
MARGIN = 6  # pixels
LINE = 11  # pixels, of a line of text
LETTER = 6  # pixels, of a letter
NUM_LINES = 3


def write_cases(answers: Sequence[tuple[Case, Image.Image]], path: Path) -> None:
    """Write a grid with the prompt's images, the answer, and the prompt's words below in each cell.

    Beside the answer to a prompt without images stands its true render.
    """
    large = max(LEAST_LARGE, *(case.size for case, _ in answers))
    wide, high = large // 2 + large + 3 * MARGIN, large + 2 * MARGIN + NUM_LINES * LINE
    num_rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * wide, num_rows * high), "white")
    for place, (case, image) in enumerate(answers):
        left, top = place % COLUMNS * wide, place // COLUMNS * high
        _paste_case(sheet, left + MARGIN, top + MARGIN, case, image, large)
    write_image(path, sheet, None)


def write_rows(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write rows of images of one size, enlarged twice if they are small."""
    pixels = [np.concatenate([np.asarray(image.convert("RGB")) for image in row], axis=1) for row in rows]
    sheet = Image.fromarray(np.concatenate(pixels))
    if rows[0][0].width < LEAST_LARGE:
        sheet = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)
    write_image(path, sheet, None)


def _paste_case(sheet: Image.Image, left: int, top: int, case: Case, answer: Image.Image, large: int) -> None:
    small = large // 2
    for number, image in enumerate(case.images[:2] or [render(case.spec, case.size).image]):
        sheet.paste(image.resize((small, small), Image.Resampling.BICUBIC), (left, top + number * small))
    sheet.paste(answer.resize((large, large), Image.Resampling.BICUBIC), (left + small + MARGIN, top))
    lines = textwrap.wrap(case.words, (small + large + MARGIN) // LETTER + 1)[:NUM_LINES]
    for number, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top + large + 2 + number * LINE), line, fill="black")

"""Text tables (plain, Markdown, CSV), and the scores of a run in them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

from kgcli.evaluation.scores import ALL, Figure, Measure, Scores

Figures = Mapping[tuple[str, str, str], Figure]  # by measure, row and group

CSV, IMAGES_CSV, MARKDOWN = "scores.csv", "pictures.csv", "scores.md"
EMPTY = "-"


def to_csv(scores: Scores) -> str:
    """Return a line for each score, with all digits."""
    names = [one.name for one in dataclasses.fields(Figure)]
    return csv_table(names, [[getattr(figure, name) for name in names] for figure in scores.figures])


def images_to_csv(scores: Scores) -> str:
    """Return a line for each image, a column for each per-image measure."""
    facts = ["path", "subject", "prompt", "image", "category", "kind", "scored_text"]
    measures = [one.name for one in scores.measures if any(one.name in image.values for image in scores.pictures)]
    lines = [
        [getattr(image, name) for name in facts] + [image.values.get(name) for name in measures]
        for image in scores.pictures
    ]
    return csv_table([*facts, *measures], lines)


def to_markdown(scores: Scores) -> str:
    """Return the scores with reference rows, by groups, and the notes."""
    parts = [f"# {scores.suite}: {_name(scores)}", *scores.notes, _of_rows(scores)]
    for name, title in (("category", "By subjects"), ("kind", "By prompts"), ("subject", "By subject")):
        groups = [one for one in dict.fromkeys(figure.group for figure in scores.figures) if one.startswith(f"{name}:")]
        if groups:
            parts.append(f"## {title}\n\n{_of_groups(scores, groups)}")
    parts.append(
        "A number after +- is half the 95 % interval: from the t distribution over subjects, or from a bootstrap over "
        "images for a score of the whole set. "
        f"Images: {len(scores.pictures)}. The protocol is in scores.json; do not compare different protocols."
    )
    return "\n\n".join(parts) + "\n"


def to_text(scores: Scores) -> str:
    """Return the scores with reference rows as a plain table, and the notes: what a command prints after scoring."""
    head, *lines = _rows(scores)
    title = f"{scores.suite}: {_name(scores)}, {len(scores.pictures)} images"
    return "\n".join([title, aligned([head, *lines]), *scores.notes])


def _of_rows(scores: Scores) -> str:
    """Return a line for each measure, a column for the method and each reference."""
    head, *lines = _rows(scores)
    return markdown(head, lines)


def _rows(scores: Scores) -> list[list[str]]:
    """Return the heads, and the cells of each measure: the method's and those of each reference."""
    figures = _by_place(scores)
    rows = list(dict.fromkeys(figure.row for figure in scores.figures if figure.group == ALL))
    ordered = sorted(scores.measures, key=lambda one: not one.primary)
    lines = [
        [f"{one.title} {'(higher)' if one.higher_is_better else '(lower)'}"]
        + [_cell(figures, one, row, ALL) for row in rows]
        for one in ordered
    ]
    return [["", *rows], *lines]


def _of_groups(scores: Scores, groups: Sequence[str]) -> str:
    """Return a line for each group, a column for each primary measure."""
    figures = _by_place(scores)
    measures = [one for one in scores.measures if one.primary and _cell(figures, one, "method", groups[0]) != EMPTY]
    lines = [[group.split(":", 1)[1], *(_cell(figures, one, "method", group) for one in measures)] for group in groups]
    return markdown(["", *(one.title for one in measures)], lines)


def _cell(figures: Figures, measure: Measure, row: str, group: str) -> str:
    figure = figures.get((measure.name, row, group))
    if figure is None:
        return EMPTY
    if figure.bounds is None:
        return f"{figure.value:.3f}"
    low, high = figure.bounds
    return f"{figure.value:.3f} +- {(high - low) / 2:.3f}"


def _by_place(scores: Scores) -> Figures:
    return {(figure.measure, figure.row, figure.group): figure for figure in reversed(scores.figures)}


def _name(scores: Scores) -> str:
    return str(scores.method.get("name", "images"))


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [list(head), ["---"] * len(head), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a plain table of columns as wide as their cells."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def sections(head: Sequence[str], blocks: Sequence[tuple[str, Sequence[Sequence[str]]]], widths: Sequence[int]) -> str:
    """Return a plain table of indented lines under titles; all columns but the first have `widths`, to the right."""
    first = max(len(line[0]) for _, lines in blocks for line in lines) + 4
    rows = [head]
    for title, lines in blocks:
        rows += [[title], *([f"  {line[0]}", *line[1:]] for line in lines)]
    return "\n".join(
        f"{row[0]:<{first}}" + " ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=False))
        if len(row) > 1
        else row[0]
        for row in rows
    )


def csv_table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return text.getvalue()

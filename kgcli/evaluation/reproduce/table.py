"""A reproduced table as JSON and Markdown, beside the paper's. No torch."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kgcli.evaluation.metrics.intervals import t_half
from kgcli.evaluation.report.tables import EMPTY, markdown
from kgcli.evaluation.reproduce.order import Order, compare_order
from kgcli.evaluation.reproduce.paper import Column, Table
from kgcli.evaluation.reproduce.reproduction import Reproduction, RowResult
from kgcli.evaluation.scores import Figure, Scores
from kgcli.files import write_whole

JSON, COMPUTE, MARKDOWN = "table.json", "compute.json", "table.md"
FAILED = "failed"
COMPUTE_HEADS = ("samples", "CPU minutes", "minutes", "minutes in all", "minutes of drawing")


@dataclass(frozen=True)
class Cell:
    """A measure of a row: its mean over seeds and where the true one lies with 95 % confidence."""

    value: float
    low: float | None
    high: float | None


def write_table(ask: Reproduction, results: Sequence[RowResult]) -> str:
    """Write table.json, compute.json and table.md; returns the last."""
    shown = to_markdown(ask, results)
    ask.out.mkdir(parents=True, exist_ok=True)
    write_whole(ask.out / JSON, to_json(ask, results).encode())
    write_whole(ask.out / COMPUTE, _compute_json(results).encode())
    write_whole(ask.out / MARKDOWN, shown.encode())
    return shown


def to_json(ask: Reproduction, results: Sequence[RowResult]) -> str:
    """The figures, their order and what they hold for; no times."""
    columns = shown_columns(ask.table, results)
    document = {
        "table": ask.table.name,
        "title": ask.table.title,
        "scale": ask.scale,
        "num_seeds": ask.num_seeds,
        "suite": ask.table.suite,
        "protocol": dict(results[0].scores[0].protocol) if results else {},
        "columns": [dataclasses.asdict(column) for column in columns],
        "rows": [_row_json(result, columns) for result in results],
        "order": {column.name: _order_json(order) for column, order in orders(columns, results)},
        "notes": list(ask.table.notes),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def to_markdown(ask: Reproduction, results: Sequence[RowResult]) -> str:
    """The table for people: figures, the paper's, what training took, and how the orders agree."""
    columns = shown_columns(ask.table, results)
    printed = [column for column in columns if any(column.name in result.row.published for result in results)]
    head = ["", *(_head(column) for column in columns), *(f"paper: {column.title}" for column in printed)]
    lines = [
        [
            result.row.title,
            *(_show(cell_of(result, column)) for column in columns),
            *(_published(result, column) for column in printed),
            *_compute_cells(result),
        ]
        for result in results
    ]
    table = markdown([*head, *COMPUTE_HEADS], lines)
    parts = [
        f"# {ask.table.title} ({ask.scale})",
        table,
        "\n".join(_order_lines(columns, results)),
        _legend(ask, results),
        *ask.table.notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown_columns(table: Table, results: Sequence[RowResult]) -> tuple[Column, ...]:
    """The columns that at least one row has."""
    return tuple(column for column in table.columns if any(cell_of(result, column) for result in results))


def cell_of(result: RowResult, column: Column) -> Cell | None:
    """A row's measure; None where its scores do not have it.

    Of one seed the interval is that of the scores; of several it is the t interval over seeds.
    """
    figures = [figure for scores in result.scores if (figure := _figure(scores, column.measure)) is not None]
    if not figures or len(figures) < len(result.scores):
        return None
    if len(figures) == 1:
        return Cell(figures[0].value, *(figures[0].bounds or (None, None)))
    values = [figure.value for figure in figures]
    mean, num = statistics.fmean(values), len(values)
    half = t_half(statistics.stdev(values), num)
    return Cell(mean, mean - half, mean + half)


def orders(columns: Sequence[Column], results: Sequence[RowResult]) -> list[tuple[Column, Order]]:
    """How the rows stand against the paper's, for the columns that it has."""
    found = []
    for column in columns:
        cells = {result.row.name: cell_of(result, column) for result in results}
        values = {name: cell.value for name, cell in cells.items() if cell is not None}
        published = {
            result.row.name: result.row.published[column.name]
            for result in results
            if column.name in result.row.published
        }
        order = compare_order(values, published, higher_is_better=column.higher_is_better)
        if order is not None:
            found.append((column, order))
    return found


def _figure(scores: Scores, measure: str) -> Figure | None:
    try:
        return scores.find(measure)
    except KeyError:
        return None


def _row_json(result: RowResult, columns: Sequence[Column]) -> dict[str, Any]:
    cells = {column.name: cell_of(result, column) for column in columns}
    return {
        "name": result.row.name,
        "title": result.row.title,
        "method": result.row.method,
        "recipe": result.row.recipe if result.row.is_model else None,
        "facts": [dict(scores.method) for scores in result.scores],
        "figures": {name: dataclasses.asdict(cell) for name, cell in cells.items() if cell is not None},
        "published": {name: FAILED if value is None else value for name, value in result.row.published.items()},
        "samples": None if result.own is None else result.own.samples,
    }


def _order_json(order: Order) -> dict[str, Any]:
    return {"tau_b": order.tau, "rows": list(order.rows), "swapped": [list(pair) for pair in order.swapped]}


def _compute_json(results: Sequence[RowResult]) -> str:
    rows = {
        result.row.name: {
            "own": None if result.own is None else dataclasses.asdict(result.own),
            "in_all": None if result.in_all is None else dataclasses.asdict(result.in_all),
            "drawing_minutes": result.drawing_minutes,
        }
        for result in results
    }
    return json.dumps(rows, indent=1) + "\n"


def _compute_cells(result: RowResult) -> list[str]:
    drawing = f"{result.drawing_minutes:.1f}"
    if result.own is None or result.in_all is None:
        return [EMPTY, EMPTY, EMPTY, EMPTY, drawing]
    own = result.own
    cpu = f"{own.cpu_minutes:.1f}" if own.cpu_minutes else EMPTY
    return [f"{own.samples:,}", cpu, f"{own.minutes:.1f}", f"{result.in_all.minutes:.0f}", drawing]


def _order_lines(columns: Sequence[Column], results: Sequence[RowResult]) -> list[str]:
    by_name = {result.row.name: result for result in results}
    lines = []
    for column, order in orders(columns, results):
        tau = "cannot be told: all equal" if order.tau is None else f"{order.tau:.2f}"
        lines.append(f"- Order by {column.title}, {len(order.rows)} rows: Kendall's tau-b {tau} (1: as in the paper).")
        for better, worse in order.swapped:
            pair = by_name[worse], by_name[better]
            doubt = " (their intervals overlap)" if _overlap(*(cell_of(one, column) for one in pair)) else ""
            lines.append(f"  - Against the paper: {pair[0].row.title} is better than {pair[1].row.title}{doubt}.")
    return lines


def _overlap(a: Cell | None, b: Cell | None) -> bool:
    """Whether both have intervals and these meet: then their order is hardly told."""
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def _legend(ask: Reproduction, results: Sequence[RowResult]) -> str:
    pictures = {len(scores.pictures) for result in results for scores in result.scores}
    over = "over seeds" if ask.num_seeds > 1 else "of the scores"
    return (
        f"Suite {ask.table.suite}, {'/'.join(map(str, sorted(pictures)))} pictures a row, {ask.num_seeds} seed(s); in "
        f"brackets the 95 % interval {over}. The paper's numbers are of photos and other extractors: only the order of "
        "rows can be compared, never the numbers. Samples and minutes are of the row's own training (CPU minutes of "
        "its main process, then those of the clock, which other work on the machine draws out); in all: with "
        "everything it stands on. Drawing includes what a method learns of each subject."
    )


def _published(result: RowResult, column: Column) -> str:
    if column.name not in result.row.published:
        return EMPTY
    value = result.row.published[column.name]
    return FAILED if value is None else f"{value:g}"


def _head(column: Column) -> str:
    return f"{column.title} {'(higher)' if column.higher_is_better else '(lower)'}"


def _show(cell: Cell | None) -> str:
    if cell is None:
        return EMPTY
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.3f}, {cell.high:.3f}]"
    return f"{cell.value:.3f}{interval}"

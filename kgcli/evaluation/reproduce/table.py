"""A reproduced table as JSON and Markdown, beside the paper's."""

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
COMPUTE_HEADS = ("samples", "CPU minutes", "minutes", "total minutes", "generation minutes")


@dataclass(frozen=True)
class Cell:
    """A measure of a row: its mean over seeds and 95 % interval."""

    value: float
    low: float | None
    high: float | None


def write_table(options: Reproduction, results: Sequence[RowResult]) -> str:
    """Write table.json, compute.json and table.md; return the last."""
    shown = to_markdown(options, results)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / JSON, to_json(options, results).encode())
    write_whole(options.out / COMPUTE, _compute_json(results).encode())
    write_whole(options.out / MARKDOWN, shown.encode())
    return shown


def to_json(options: Reproduction, results: Sequence[RowResult]) -> str:
    """Return scores, their order and the protocol as JSON; no times."""
    columns = shown_columns(options.table, results)
    document = {
        "table": options.table.name,
        "title": options.table.title,
        "scale": options.scale,
        "num_seeds": options.num_seeds,
        "suite": options.table.suite,
        "protocol": dict(results[0].scores[0].protocol) if results else {},
        "columns": [dataclasses.asdict(column) for column in columns],
        "rows": [_row_json(result, columns) for result in results],
        "order": {column.name: _order_json(order) for column, order in orders(columns, results)},
        "notes": list(options.table.notes),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def to_markdown(options: Reproduction, results: Sequence[RowResult]) -> str:
    """Return the table as Markdown: scores, the paper's, training compute, and the agreement of the orders."""
    columns = shown_columns(options.table, results)
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
        f"# {options.table.title} ({options.scale})",
        table,
        "\n".join(_order_lines(columns, results)),
        _legend(options, results),
        *options.table.notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown_columns(table: Table, results: Sequence[RowResult]) -> tuple[Column, ...]:
    """Return the columns that at least one row has."""
    return tuple(column for column in table.columns if any(cell_of(result, column) for result in results))


def cell_of(result: RowResult, column: Column) -> Cell | None:
    """Return a row's measure; None if its scores lack it.

    With one seed the interval is that of the scores; with several it is the t interval over seeds.
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
    """Compare the order of rows with the paper's, for its columns."""
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
            "drawing_minutes": result.generation_minutes,
        }
        for result in results
    }
    return json.dumps(rows, indent=1) + "\n"


def _compute_cells(result: RowResult) -> list[str]:
    generation = f"{result.generation_minutes:.1f}"
    if result.own is None or result.in_all is None:
        return [EMPTY, EMPTY, EMPTY, EMPTY, generation]
    own = result.own
    cpu = f"{own.cpu_minutes:.1f}" if own.cpu_minutes else EMPTY
    return [f"{own.samples:,}", cpu, f"{own.minutes:.1f}", f"{result.in_all.minutes:.0f}", generation]


def _order_lines(columns: Sequence[Column], results: Sequence[RowResult]) -> list[str]:
    by_name = {result.row.name: result for result in results}
    lines = []
    for column, order in orders(columns, results):
        tau = "undefined (all equal)" if order.tau is None else f"{order.tau:.2f}"
        lines.append(f"- Order by {column.title}, {len(order.rows)} rows: Kendall's tau-b {tau} (1: as in the paper).")
        for better, worse in order.swapped:
            pair = by_name[worse], by_name[better]
            doubt = " (their intervals overlap)" if _overlap(*(cell_of(one, column) for one in pair)) else ""
            lines.append(f"  - Against the paper: {pair[0].row.title} is better than {pair[1].row.title}{doubt}.")
    return lines


def _overlap(a: Cell | None, b: Cell | None) -> bool:
    """Return whether both have intervals that overlap: their order is then uncertain."""
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def _legend(options: Reproduction, results: Sequence[RowResult]) -> str:
    images = {len(scores.pictures) for result in results for scores in result.scores}
    over = "over seeds" if options.num_seeds > 1 else "of the scores"
    return (
        f"Suite {options.table.suite}, {'/'.join(map(str, sorted(images)))} images per row, "
        f"{options.num_seeds} seed(s); in brackets the 95 % interval {over}. The paper's numbers are of photos and "
        "other extractors: compare the order of rows, not the numbers. Samples and minutes are of the row's own "
        "training (CPU minutes of its main process, then wall-clock minutes, which depend on the machine's load); "
        "total: with its dependencies. Generation includes per-subject training."
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

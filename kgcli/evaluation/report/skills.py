"""Figures as one table for people and one JSON document for programs."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from kgcli import __version__
from kgcli.evaluation.benchmarks.skills import EDIT_KINDS, TASKS, Case
from kgcli.evaluation.benchmarks.skills_scoring import MEASURES, Scores
from kgcli.evaluation.metrics.intervals import Estimate, estimate

MEASURED = ("model", "before", "base")  # shown with their intervals; the others are what they are compared with
COLUMNS = (*MEASURED, "true", "vae", "other", "copy")
ALL = "all"
PACKAGES = ("torch", "diffusers", "transformers", "pillow", "numpy")


@dataclass(frozen=True)
class Row:
    """One figure: of a painter, on the cases of a task and kind, by a measure."""

    task: str
    kind: str  # of an edit, or "all"
    measure: str
    painter: str
    estimate: Estimate


@dataclass(frozen=True)
class Report:
    """All figures of one evaluation, and what they hold for."""

    facts: dict[str, Any]
    rows: list[Row]

    def find(self, task: str, measure: str, painter: str = "model", kind: str = ALL) -> Estimate:
        """One figure. Raises: KeyError."""
        for row in self.rows:
            if (row.task, row.measure, row.painter, row.kind) == (task, measure, painter, kind):
                return row.estimate
        raise KeyError((task, measure, painter, kind))

    def to_json(self) -> str:
        """The report as JSON: facts, versions and all figures with their intervals."""
        rows = [{**dataclasses.asdict(row), **dataclasses.asdict(row.estimate)} for row in self.rows]
        for row in rows:
            del row["estimate"]
        return json.dumps({**self.facts, "versions": versions(), "rows": rows}, indent=2)

    def __str__(self) -> str:
        """The report as one table, in percent."""
        painters = [name for name in COLUMNS if any(row.painter == name for row in self.rows)]
        cells = {(row.task, row.kind, row.measure, row.painter): row.estimate for row in self.rows}
        lines, width = [_header(painters)], max(len(title) for title in MEASURES.values()) + 2
        for task, kind in _sections(self.rows):
            present = [m for m in MEASURES if any((task, kind, m, p) in cells for p in painters)]
            num = max(cells[key].num for key in cells if key[:2] == (task, kind))
            title = TASKS[task].title + ("" if kind == ALL else f", {kind}")
            lines.append(f"{title} ({num})")
            for measure in present:
                shown = [_cell(cells.get((task, kind, measure, painter)), painter) for painter in painters]
                lines.append(f"  {MEASURES[measure]:<{width}}" + " ".join(shown))
        return "\n".join([*lines, "", *_notes(self.facts)])


def summarise(task: str, painter: str, cases: Sequence[Case], scores: Sequence[Scores]) -> list[Row]:
    """The mean of every measure over the cases it applies to; of edits also by kind."""
    kinds = [ALL, *(EDIT_KINDS if task == "edit" else ())]
    rows = []
    for kind in kinds:
        chosen = [score for case, score in zip(cases, scores, strict=True) if kind in (ALL, case.kind)]
        for measure in MEASURES:
            values = [score[measure] for score in chosen if measure in score]
            if values:
                rows.append(Row(task, kind, measure, painter, estimate(values)))
    return rows


def versions() -> dict[str, str]:
    """What the figures were made with."""
    installed = {name: version(name) for name in PACKAGES}
    return {"kgcli": __version__, "python": platform.python_version(), **installed}


def _sections(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.task, row.kind) for row in rows))


def _header(painters: list[str]) -> str:
    width = max(len(title) for title in MEASURES.values()) + 4
    return f"{'percent [95 % interval]':<{width}}" + " ".join(f"{name:>{_width(name)}}" for name in painters)


def _cell(value: Estimate | None, painter: str) -> str:
    if value is None:
        return " " * _width(painter)
    shown = f"{100 * value.value:.1f}"
    if painter in MEASURED:
        shown += f" [{100 * value.low:5.1f}, {100 * value.high:5.1f}]"
    return f"{shown:>{_width(painter)}}"


def _width(painter: str) -> int:
    return 20 if painter in MEASURED else 6


def _notes(facts: dict[str, Any]) -> list[str]:
    model = facts.get("model", {})
    return [
        "true: rendered as asked (ceiling). vae: that, through the VAE. other: of another individual (floor). "
        "copy: the prompt's first picture.",
        f"{facts.get('protocol')}, seed {facts.get('seed')}, {facts.get('seconds')} s, "
        f"model {model.get('name')} {str(model.get('sha256'))[:12]}, judges {str(facts.get('judges'))[:12]}",
    ]

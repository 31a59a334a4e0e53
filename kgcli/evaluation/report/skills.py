"""The scores of `kg eval nano` and `kg eval adapters` as a text table and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kgcli.evaluation.benchmarks.skills import EDIT_KINDS, SKILL_MEASURES, TASKS
from kgcli.evaluation.metrics.intervals import Estimate, estimate
from kgcli.evaluation.report.tables import sections
from kgcli.evaluation.scores import ALL, ImageScore
from kgcli.runtime import versions

PACKAGES = ("torch", "diffusers", "transformers", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Contents of a table, in order, and its notes."""

    titles: Mapping[str, str]  # of tasks
    measures: Mapping[str, str]
    columns: Sequence[str]  # of methods
    measured: Sequence[str]  # columns shown with their intervals; the others are references
    bound: str = "5.1f"  # format of the interval bounds
    notes: Sequence[str] = ()


SKILLS = Layout(
    titles={name: task.title for name, task in TASKS.items()},
    measures=SKILL_MEASURES,
    columns=("model", "before", "base", "true", "vae", "twin", "other", "copy"),
    measured=("model", "before", "base"),
    notes=(
        "true: rendered from the prompt (ceiling). vae: its VAE reconstruction. twin: another instance that the same "
        "words describe, its noun included (what words can tell). other: a distractor instance (floor). "
        "copy: the prompt's first image.",
    ),
)


@dataclass(frozen=True)
class Row:
    """One score of a method, on the cases of a task and kind."""

    task: str
    kind: str  # of an edit, or "all"
    measure: str
    column: str  # the method
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, under the keys of report files."""
        place = {"task": self.task, "kind": self.kind, "measure": self.measure, "painter": self.column}
        return {**place, **dataclasses.asdict(self.estimate)}


@dataclass(frozen=True)
class Report:
    """All scores of one evaluation and its settings."""

    facts: dict[str, Any]
    rows: list[Row]
    layout: Layout = SKILLS

    def find(self, task: str, measure: str, column: str = "model", kind: str = ALL) -> Estimate:
        """Find one score. Raises: KeyError."""
        for row in self.rows:
            if (row.task, row.measure, row.column, row.kind) == (task, measure, column, kind):
                return row.estimate
        raise KeyError((task, measure, column, kind))

    def to_json(self) -> str:
        """Return the report as JSON: settings, versions and all scores with their intervals."""
        return json.dumps(
            {**self.facts, "versions": versions(PACKAGES), "rows": [row.to_json() for row in self.rows]}, indent=2
        )

    def __str__(self) -> str:
        """Return the report as one table, in percent."""
        layout = self.layout
        columns = [name for name in layout.columns if any(row.column == name for row in self.rows)]
        cells = {(row.task, row.kind, row.measure, row.column): row.estimate for row in self.rows}
        blocks = []
        for task, kind in dict.fromkeys((row.task, row.kind) for row in self.rows):
            num = max(cells[key].num for key in cells if key[:2] == (task, kind))
            title = layout.titles[task] + ("" if kind == ALL else f", {kind}")
            lines = [
                [words, *(self._cell(cells.get((task, kind, measure, column)), column) for column in columns)]
                for measure, words in layout.measures.items()
                if any((task, kind, measure, column) in cells for column in columns)
            ]
            blocks.append((f"{title} ({num})", lines))
        widths = [20 if name in layout.measured else 6 for name in columns]
        table = sections(["percent [95 % interval]", *columns], blocks, widths)
        return "\n".join([table, "", *layout.notes, self._facts()])

    def _cell(self, value: Estimate | None, column: str) -> str:
        if value is None:
            return ""
        low, high = (format(100 * end, self.layout.bound) for end in (value.low, value.high))
        return f"{100 * value.value:.1f}" + (f" [{low}, {high}]" if column in self.layout.measured else "")

    def _facts(self) -> str:
        facts, model = self.facts, self.facts.get("model", {})
        recognisers = f", recognisers {facts['judges'][:12]}" if "judges" in facts else ""
        return (
            f"{facts.get('protocol')}, seed {facts.get('seed')}, {facts.get('seconds')} s, "
            f"model {model.get('name')} {str(model.get('sha256', ''))[:12]}{recognisers}"
        )


def summarise(task: str, column: str, scored: Sequence[ImageScore]) -> list[Row]:
    """Average every measure over the cases it applies to; edits also by kind."""
    rows = []
    for kind in (ALL, *(EDIT_KINDS if task == "edit" else ())):
        chosen = [one.values for one in scored if kind in (ALL, one.kind)]
        for measure in SKILL_MEASURES:
            values = [one[measure] for one in chosen if measure in one]
            if values:
                rows.append(Row(task, kind, measure, column, estimate(values)))
    return rows

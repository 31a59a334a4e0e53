"""The result of a measurement: a card for people, and one line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kgcli.runtime import versions

PACKAGES = ("torch", "diffusers")
GIB = 2**30
LABELS = {
    "samples_per_second": ("samples per second", "{:.3g}"),
    "images_per_second": ("images per second", "{:.3g}"),
    "prompts_per_second": ("prompts per second", "{:.3g}"),
    "seconds": ("seconds, median", "{:.4g}"),
    "seconds_min": ("seconds, fastest", "{:.4g}"),
    "seconds_max": ("seconds, slowest", "{:.4g}"),
    "tflops_per_second": ("TFLOP per second", "{:.3g}"),
    "mfu": ("of the card's peak (MFU)", "{:.1%}"),
    "peak_memory_bytes": ("peak memory", "{:.2f} GiB"),
    "data_wait": ("of the time waiting for data", "{:.1%}"),
    "against_diffusers": ("time against diffusers alone", "{:.3f} x"),
    "against_one_by_one": ("speed against one by one", "{:.2f} x"),
    "against_model": ("time against the model alone", "{:.3f} x"),
    "against_kept_batch": ("time against one kept batch", "{:.3f} x"),
}


@dataclass(frozen=True)
class Card:
    """A measurement: its settings and its results, by name."""

    theme: str
    settings: Mapping[str, Any]
    results: Mapping[str, Any]

    def to_json(self) -> str:
        """Return one line of JSON."""
        values = {"theme": self.theme, **self.settings, **self.results, "versions": versions(PACKAGES)}
        return json.dumps({name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in values.items()})

    def show(self) -> None:
        """Print the card on stderr."""
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in self.settings.items():
            table.add_row(name.replace("_", " "), str(value))
        table.add_row()
        for name, value in self.results.items():
            label, form = LABELS[name]
            table.add_row(label, f"[bold]{form.format(value / GIB if name == 'peak_memory_bytes' else value)}[/bold]")
        console = Console(stderr=True, highlight=False)
        console.print(Panel(table, title=f"kg bench {self.theme}", expand=False))
        sys.stderr.flush()


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, fastest and slowest of several times."""
    return {"seconds": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds)}

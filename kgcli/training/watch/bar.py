"""The bar of a run on a terminal: steps, the last logged loss, time left and memory; nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import torch

from kgcli.runtime import peak_memory


class Bar:
    """A rich progress bar on stderr. Lines that are printed meanwhile go above it."""

    def __init__(self, num_steps: int, step: int) -> None:
        """Args:
        step: steps that are already taken
        """
        self.progress: Any = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            redirect_stdout=False,
        )
        self.task = self.progress.add_task("", total=num_steps, completed=step)
        self.progress.start()

    def update(self, step: int) -> None:
        """Show a step."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step)

    def show(self, loss: float | None) -> None:
        """Show the loss of a row of the log, and the memory at its highest."""
        if self.progress is not None:
            told = "" if loss is None else f"loss {loss:.4g}  "
            peak = peak_memory("cuda" if torch.cuda.is_available() else "cpu")
            self.progress.update(self.task, description=f"{told}{peak / 2**30:.1f} GiB")

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self.progress is not None:
            self.progress.stop()

"""Experiment trackers beside TensorBoard, by accelerate: wandb and trackio, which are installed on their own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from kgcli.errors import MissingError
from kgcli.recipe import Recipe


def check_trackers(recipe: Recipe) -> None:
    """Check that the libraries of a recipe's trackers are installed. Raises: MissingError."""
    for name in recipe.trackers:
        if find_spec(name) is None:
            raise MissingError(
                f"trackers: {name} is not installed; `pip install {name}`, or leave it out: metrics.jsonl and "
                "TensorBoard are always written"
            )


class Trackers:
    """The trackers of a run, on its main process. The project is kgcli, a run has the name of its folder."""

    def __init__(self, recipe: Recipe) -> None:
        check_trackers(recipe)
        self.all: list[Any] = []
        if not recipe.trackers:
            return
        PartialState()  # accelerate's trackers ask it for the main process
        for name in recipe.trackers:
            tracker = LOGGER_TYPE_TO_CLASS[name]("kgcli", name=Path(recipe.output_dir).name)
            tracker.start()
            tracker.store_init_configuration(recipe.model_dump(mode="json"))
            self.all.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        for tracker in self.all:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Close all."""
        for tracker in self.all:
            tracker.finish()

"""Logs of a training run: metrics.jsonl, TensorBoard, sample grids and env.json."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import save_image

from kgcli.files import make_folder, write_whole
from kgcli.recipe import Recipe, dump_recipe
from kgcli.training.watch.bar import Bar
from kgcli.training.watch.trackers import Trackers

log = logging.getLogger("kgcli.training.loop")


class Metrics:
    """metrics.jsonl, TensorBoard, sample grids and env.json of a run."""

    def __init__(self, recipe: Recipe, step: int, state: dict[str, Any]) -> None:
        """Args:
        step: that the run begins after
        state: of the checkpoint it begins from, if any
        """
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.file = self.folder / "metrics.jsonl"
        self.validation_file = self.folder / "validation.jsonl"
        row = state.get("row", {"sums": {}, "num_summed": 0})
        self.sums: dict[str, float] = dict(row["sums"])  # of the row under way, which a checkpoint may cut in two
        self.num_summed: int = row["num_summed"]
        self.num_skipped: int = row.get("num_skipped", 0)
        self.waiting: list[dict[str, Tensor | float]] = []  # steps whose values are still on the device
        make_folder(self.folder)
        write_whole(self.folder / "recipe.yaml", dump_recipe(recipe))
        write_whole(self.folder / "env.json", json.dumps(environment(), indent=2) + "\n")
        self._forget_after(step)
        _hide_host(self.folder / "tensorboard")
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        self.trackers = Trackers(recipe)
        self.bar = Bar(recipe.steps, step)
        self._start_clocks()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        """Flush TensorBoard, close the trackers and the bar."""
        self.bar.stop()
        self.board.close()
        self.trackers.finish()
        _hide_host(self.folder / "tensorboard")

    def add(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Add one step; write the mean of the last `log_every`, without those that were skipped.

        Values are read from the device when a row is written, not at every step.
        """
        self.waiting.append(values)
        self.num_timed += 1
        self.bar.update(step)
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        self._read()
        row = {name: total / self.num_summed for name, total in self.sums.items()}
        if self.num_skipped:
            row["skipped"] = self.num_skipped
        seconds = time.monotonic() - self.since
        row["samples_per_second"] = self.num_timed * self.recipe.data.batch_size / seconds
        # Cost of a step even when other work shares the cores; without the loaders.
        row["cpu_seconds"] = time.process_time() - self.cpu_since
        self._write(self.file, step, row)
        self.bar.show(row.get("loss"))
        self.sums, self.num_summed, self.num_skipped = {}, 0, 0
        self._start_clocks()

    def validate(self, step: int, losses: dict[str, float]) -> None:
        """Write the losses of held-out samples to validation.jsonl and the trackers."""
        self._write(self.validation_file, step, {f"validation_{name}": value for name, value in losses.items()})

    def _write(self, file: Path, step: int, row: dict[str, float]) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **{name: float(f"{v:.6g}") for name, v in row.items()}}) + "\n")
        for name, mean in row.items():
            self.board.add_scalar(name, mean, step)
        self.trackers.log(row, step)
        shown = " ".join(f"{name} {value:.4g}" for name, value in row.items())
        say(f"step {step}/{self.recipe.steps} {shown}")

    def show(self, step: int, images: Tensor | None) -> None:
        """Write a grid of preview images, where there are any."""
        if images is None:
            return
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_image(images.float(), folder / f"step_{step:07d}.png", nrow=8)
        self.board.add_images("samples", images.float(), step)

    def state(self) -> dict[str, Any]:
        """Return the row under way, for a checkpoint."""
        self._read()
        return {"row": {"sums": dict(self.sums), "num_summed": self.num_summed, "num_skipped": self.num_skipped}}

    def _read(self) -> None:
        """Add the waiting steps to the row; one copy from the device for all of them."""
        tensors = [value for values in self.waiting for value in values.values() if isinstance(value, Tensor)]
        numbers = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist() if tensors else [])
        for values in self.waiting:
            read = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in values.items()}
            if read.pop("skipped", 0.0):
                self.num_skipped += 1
                continue
            for name, number in read.items():
                self.sums[name] = self.sums.get(name, 0.0) + number
            self.num_summed += 1
        self.waiting = []

    def _start_clocks(self) -> None:
        self.num_timed, self.since, self.cpu_since = 0, time.monotonic(), time.process_time()

    def _forget_after(self, step: int) -> None:
        """Drop rows of steps that a resumed run will take again."""
        for path in (self.file, self.validation_file):
            if path.exists():
                rows = [row for row in path.read_text("utf-8").splitlines() if row.endswith("}")]
                kept = [row for row in rows if json.loads(row)["step"] <= step]
                write_whole(path, "".join(row + "\n" for row in kept))


def _hide_host(folder: Path) -> None:
    """Remove the host name from the names of TensorBoard's files, which may be published."""
    for path in folder.glob("events.out.tfevents.*"):
        seconds, _, rest = path.name.removeprefix("events.out.tfevents.").partition(".")
        _, *numbers = rest.rsplit(".", 2)  # a host name may have dots
        path.rename(folder / ".".join(["events.out.tfevents", seconds, "kgcli", *numbers]))


def environment() -> dict[str, str]:
    """Return versions and machine, for env.json."""
    import diffusers
    import transformers

    from kgcli.version import __version__

    versions = {"kgcli": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    threads = str(torch.get_num_threads())
    return {
        **versions,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": threads,
    }


def say(line: str) -> None:
    """Log progress, also to stderr."""
    log.info(line)
    print(line, file=sys.stderr, flush=True)

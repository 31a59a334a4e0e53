"""What a training run writes for people: metrics.jsonl, TensorBoard, sample grids and env.json."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import save_image

from kgcli.config import dump_recipe
from kgcli.data.batch import EVALUATION_STEP, Batches, Pool
from kgcli.files import make_folder, write_whole

if TYPE_CHECKING:
    from kgcli.training.loop import Run

log = logging.getLogger("kgcli.training.loop")


class Metrics:
    """metrics.jsonl, TensorBoard, sample grids and env.json of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.every = run.recipe.log_every
        self.file = run.folder / "metrics.jsonl"
        self._start_clocks()
        make_folder(run.folder)
        write_whole(run.folder / "recipe.yaml", dump_recipe(run.recipe))
        write_whole(run.folder / "env.json", json.dumps(environment(), indent=2) + "\n")
        self._forget_after(run.step)
        _hide_host(run.folder / "tensorboard")
        self.board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Take in one step; write the mean of the last `log_every`."""
        run = self.run
        for name, value in values.items():
            run.sums[name] = run.sums.get(name, 0.0) + float(value)
        run.num_summed += 1
        self.num_timed += 1
        if step % self.every and step != run.recipe.steps:
            return
        row = {name: total / run.num_summed for name, total in run.sums.items()}
        seconds = time.monotonic() - self.since
        row["samples_per_second"] = self.num_timed * run.recipe.data.batch_size / seconds
        # What a step costs where other work takes turns on the same cores; without the loaders.
        row["cpu_seconds"] = time.process_time() - self.cpu_since
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{name: float(f"{v:.6g}") for name, v in row.items()}}) + "\n")
        for name, mean in row.items():
            self.board.add_scalar(name, mean, step)
        shown = " ".join(f"{name} {value:.4g}" for name, value in row.items())
        say(f"step {step}/{run.recipe.steps} {shown}")
        run.sums, run.num_summed = {}, 0
        self._start_clocks()

    def preview(self, run: Run, pool: Pool | None) -> None:
        """Write a grid of what the running-mean weights make of one batch no step trains on."""
        batches = Batches(run.recipe, run.stage.collator(pool))
        batch = batches[EVALUATION_STEP // run.recipe.data.batch_size].to(run.device)
        run.stage.eval()
        # Other shapes than training's: compiling for them would take longer than the preview.
        with run.averaged(), run.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            pictures = run.stage.preview(batch, torch.Generator().manual_seed(0))
        run.stage.train()
        if pictures is None:
            return
        folder = run.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_image(pictures.float(), folder / f"step_{run.step:07d}.png", nrow=8)
        self.board.add_images("samples", pictures.float(), run.step)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()
        _hide_host(self.run.folder / "tensorboard")

    def _start_clocks(self) -> None:
        self.num_timed, self.since, self.cpu_since = 0, time.monotonic(), time.process_time()

    def _forget_after(self, step: int) -> None:
        """Drop rows of steps that a resumed run will take again."""
        if not self.file.exists():
            return
        rows = [row for row in self.file.read_text("utf-8").splitlines() if row.endswith("}")]
        kept = [row for row in rows if json.loads(row)["step"] <= step]
        write_whole(self.file, "".join(row + "\n" for row in kept))


def _hide_host(folder: Path) -> None:
    """Take the name of this machine out of the names of TensorBoard's files, which people share."""
    for path in folder.glob("events.out.tfevents.*"):
        seconds, _, rest = path.name.removeprefix("events.out.tfevents.").partition(".")
        _, *numbers = rest.rsplit(".", 2)  # a host name may have dots
        path.rename(folder / ".".join(["events.out.tfevents", seconds, "kgcli", *numbers]))


def environment() -> dict[str, str]:
    """Versions and machine, for env.json."""
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
    """Tell the user, on stderr, how far training is."""
    log.info(line)
    print(line, file=sys.stderr, flush=True)

"""The one training loop: every stage, one process or many, killed and resumed without a trace.

All chance of a step comes from (seed, step, rank) and all data from the step's number, so a checkpoint needs no
loader or generator state and a resumed run repeats an uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from kgcli.config import Recipe, dump_recipe
from kgcli.data.batch import Batches, Pool
from kgcli.data.sources.world import check_kinds
from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.files import locked, remove_leftovers, whole_folder
from kgcli.model.randomness import StepRandom
from kgcli.training import checkpoint
from kgcli.training.latent_cache import make_pool
from kgcli.training.logging import Metrics, say
from kgcli.training.optim import lr_at, make_optimizer
from kgcli.training.resume import recipe_changes
from kgcli.training.stages import STAGES
from kgcli.training.stages.kosmosg import KosmosGStage, Stage

MAX_SHOWN = 64  # samples that a dry run renders


class Run:
    """One training run: its stage, optimizer and files."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.stage not in STAGES:
            raise ConfigError(f"there is no stage {recipe.stage!r}; the stages are {', '.join(STAGES)}")
        check_kinds(recipe.data.kinds)
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        # Without `cpu` accelerate takes several CPU processes for as many separate runs.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision]
        )
        torch.manual_seed(recipe.seed)
        self.stage: Stage = STAGES[recipe.stage](recipe)
        self.stage.freeze()
        self.trained = {name: p for name, p in self.stage.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(self.trained.items(), recipe.optim)
        self.module, self.optimizer = self.accelerator.prepare(self.stage, self.optimizer)
        self.ema = (
            EMAModel(self.trained.values(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
            if recipe.ema_decay
            else None
        )
        self.step = 0
        self.sums: dict[str, float] = {}  # of the metrics row under way, which a checkpoint may cut in two
        self.num_summed = 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def random(self, step: int, numbers: Sequence[int]) -> StepRandom:
        """Return the randomness of a step's samples; also seed the global generator, which dropout draws from."""
        random = StepRandom(self.recipe.seed, step, numbers)
        # Dropout alone is drawn for a process's samples together: its masks follow the first of them.
        torch.manual_seed(random.streams[0].initial_seed())
        return random

    def batches(self, pool: Pool | None, first: int) -> Iterator[Any]:
        """The batches from step `first` on, rendered ahead by worker processes."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        batches = Batches(self.recipe, self.stage.collator(pool), rank, num_ranks)
        workers = self.recipe.data.num_workers
        return iter(
            DataLoader(
                batches,
                batch_size=None,
                sampler=range(first, self.recipe.steps),
                num_workers=workers,
                worker_init_fn=_leave_signals_to_parent,
                prefetch_factor=4 if workers else None,
            )
        )

    def save(self) -> Path:
        """Write a checkpoint of the step reached."""
        weights = {name: p.detach() for name, p in self.trained.items()}
        row = {"sums": self.sums, "num_summed": self.num_summed}
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "row": row}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        keep = self.recipe.keep_checkpoints
        return checkpoint.save(self.folder, self.step, weights, state, dump_recipe(self.recipe), keep)

    def resume(self, folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from the content of a checkpoint."""
        self.step = step
        shapes = {name: p.shape for name, p in self.trained.items()}
        if {name: tensor.shape for name, tensor in weights.items()} != shapes:
            raise IncompatibleError(
                f"checkpoint {folder} holds other parameters than this recipe trains; "
                "go on with the recipe beside it, or start anew with --resume none"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise IncompatibleError(f"the optimizer of checkpoint {folder} does not fit this recipe: {error}") from None
        if self.ema is not None and "ema" in state:
            self.ema.load_state_dict(state["ema"])
        if "row" in state:
            self.sums, self.num_summed = dict(state["row"]["sums"]), state["row"]["num_summed"]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running-mean weights in place of the last ones, for previews and export."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained.values())
        self.ema.copy_to(self.trained.values())
        try:
            yield
        finally:
            self.ema.restore(self.trained.values())


def train(recipe: Recipe, resume: str = "auto", dry_run: bool = False) -> str:
    """Run a recipe to its end and export its result to `output_dir/final`; returns one line that says so.

    Raises:
        ConfigError, MissingError: the recipe or what it starts from is not sound.
        KeyboardInterrupt: interrupted; a checkpoint of the last whole step is written first.
    """
    run = Run(recipe)
    if dry_run:
        return describe(run)
    main = run.accelerator.is_main_process
    with locked(run.folder) if main else contextlib.nullcontext():
        return _train(run, resume)


def _train(run: Run, resume: str) -> str:
    """Take a run up in its folder, which no other process writes to, and bring it to its end."""
    if run.accelerator.is_main_process:
        remove_leftovers(run.folder)
        remove_leftovers(run.folder / checkpoint.FOLDER)
        if resume == "none" and (place := checkpoint.retire(run.folder)) is not None:
            say(f"starting anew: what the earlier run left is in {place}")
    run.accelerator.wait_for_everyone()
    found = _resume(run, resume)
    say(f"run folder {run.folder}: " + (f"resuming from step {run.step}" if found else "starting anew"))
    metrics = Metrics(run) if run.accelerator.is_main_process else None
    try:
        pool = make_pool(run) if run.stage.uses_pool else None
        with _stop_on_signals() as stopped, _attention(run.device):
            _loop(run, pool, metrics, stopped)
    finally:
        if metrics is not None:
            metrics.close()
    if run.accelerator.is_main_process:
        _export(run)
    return f"{run.folder / 'final'}"


def _resume(run: Run, resume: str) -> Path | None:
    """Go on from the checkpoint asked for, or the newest whole one before it where that is damaged.

    Raises: MissingError where all are damaged, or the one that was named; IncompatibleError for another recipe's.
    """
    found = checkpoint.find(run.folder, resume)
    if found is None:
        return None
    older = [] if resume not in ("auto", "true") else checkpoint.list_steps(run.folder)[:-1]
    while True:
        try:
            content = checkpoint.load(found)
            break
        except MissingError as error:
            if not older:
                raise
            say(f"{error}: going on from {older[-1].name}")
            found = older.pop()
    for change in recipe_changes(found / "recipe.yaml", run.recipe):
        say(f"the recipe is not that of {found.name}: {change}")
    run.resume(found, *content)
    return found


def describe(run: Run) -> str:
    """What a run would train, freeze, read and write, without running it."""
    lines = [f"{run.recipe.stage}: {run.recipe.steps} steps of {run.recipe.data.batch_size} samples -> {run.folder}"]
    for name, part in _parts(run.stage):
        total = sum(p.numel() for p in part.parameters())
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        lines.append(f"  {name:24} {total:>12,} parameters, {trained:>12,} trained")
    trained = sum(p.numel() for p in run.trained.values())
    total = sum(p.numel() for p in run.stage.parameters())
    copies = 4 if run.ema is None else 5  # weights, gradients, two moments, running mean
    memory = 4 * (total + (copies - 1) * trained)
    disk = 4 * trained * copies * run.recipe.keep_checkpoints
    lines.append(f"  memory without activations {memory / 2**20:.0f} MiB, checkpoints on disk {disk / 2**20:.0f} MiB")
    lines.append("  " + _describe_batch(run))
    stage = run.recipe.stage
    command = stage if isinstance(run.stage, KosmosGStage) else f"base {stage}"
    lines.append(f"  start with: kg {command} RECIPE, or accelerate launch -m kgcli {command} RECIPE")
    return "\n".join(lines)


def _describe_batch(run: Run) -> str:
    """Return what a batch holds, from its first samples: a large one is reckoned and never rendered."""
    data = run.recipe.data
    size = min(data.batch_size, MAX_SHOWN)
    bucket = data.bucket if size == data.batch_size else 1
    few = data.model_copy(update={"pool": None, "batch_size": size, "bucket": bucket})
    fields = Batches(run.recipe.model_copy(update={"data": few}), _without_pool(run.stage))[0].fields()
    num_bytes = sum(value.numel() * value.element_size() for value in fields.values()) * data.batch_size / size
    shown = "one batch" if size == data.batch_size else f"{size} of the samples of one batch"
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in fields.items())
    return f"{shown}: {shapes}; a whole one takes {num_bytes / 2**20:.0f} MiB"


def _loop(run: Run, pool: Pool | None, metrics: Metrics | None, stopped: list[int]) -> None:
    recipe, module = run.recipe, run.module
    if recipe.compile:
        for part in run.stage.heavy_parts():
            part.compile(dynamic=False)
    module.train()
    for batch in run.batches(pool, run.step):
        losses = _step(run, module, batch.to(run.device))
        run.step += 1
        last = run.step == recipe.steps
        if metrics is not None:
            metrics.add(run.step, losses)
            if run.step % recipe.sample_every == 0 or last:
                metrics.preview(run, pool)
            if run.step % recipe.save_every == 0 or last or stopped:
                run.save()
        if stopped:
            say(f"stopped by signal {stopped[0]}; step {run.step} is saved")
            raise KeyboardInterrupt


def _step(run: Run, forward: nn.Module, batch: Any) -> dict[str, Tensor]:
    """One optimizer step; returns its losses, gradient norm and learning rate."""
    recipe = run.recipe
    rate = lr_at(run.step, recipe.steps, recipe.optim)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    losses = forward(batch, run.random(run.step, batch.numbers))
    total = torch.stack(list(losses.values())).sum()
    run.accelerator.backward(total)
    norm = run.accelerator.clip_grad_norm_(list(run.trained.values()), recipe.optim.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.step(run.trained.values())
    return {
        **{name: value.detach() for name, value in losses.items()},
        "loss": total.detach(),
        "grad_norm": norm,
        "lr": torch.tensor(rate),
    }


def _export(run: Run) -> None:
    run.stage.eval()
    with whole_folder(run.folder / "final", overwrite=True) as partial, run.averaged(), torch.no_grad():
        run.stage.export(partial)


def _parts(stage: Stage) -> list[tuple[str, nn.Module]]:
    parts = []
    for name, child in stage.named_children():
        deeper = list(child.named_children()) if name in ("model", "diffusion") else []
        parts += [(f"{name}.{inner}", part) for inner, part in deeper] or [(name, child)]
    return parts


def _without_pool(stage: Stage) -> Any:
    collator = stage.collator(None)
    collator.needs = collator.needs - {"moments"}
    return collator


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Collect the first signal that ends a process: the step under way is finished and saved; a second ends at once."""
    stopped: list[int] = []

    def note(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    try:
        old = {number: signal.signal(number, note) for number in stop_signals()}
    except ValueError:  # not the main thread: signals go elsewhere
        old = {}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stop_signals() -> list[int]:
    """Return the signals that end a process, a terminal's hang-up among them unless nohup has it ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]


def _leave_signals_to_parent(worker: int) -> None:
    """A terminal sends Ctrl-C to all processes; the loop still needs its loaders to finish the step."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def _attention(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On a CPU the fused kernel's bf16 backward pass takes several times the plain one's time at small head sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()

"""One training run: its data, stage, trainer and files, and what a step, a preview and the result are made of."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kgcli.data.batch import Batch, Collator
from kgcli.data.hidden import HiddenStates
from kgcli.data.loader import EVALUATION_STEP, Batches, load_batches
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.sources import open_source
from kgcli.data.sources.base import Source
from kgcli.data.sources.kept import KeptSource
from kgcli.data.sources.mixture import kind_of_steps, weigh_by_tokens
from kgcli.data.sources.rendered import RenderedSource, make_rendered
from kgcli.files import whole_folder
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.model.randomness import StepRandom, step_random
from kgcli.recipe import Recipe, dump_recipe
from kgcli.training.caches.hidden import make_hidden
from kgcli.training.caches.moments import make_pool
from kgcli.training.checks.data import check_batch_size, check_hidden, check_kinds, check_source
from kgcli.training.logging import Metrics, say
from kgcli.training.parallel import find_processes, unsharded
from kgcli.training.precision import autocast, check_sharded_scalars, gradient_scaler
from kgcli.training.split import SplitLosses, read_together
from kgcli.training.stages import find_stage, make_stage
from kgcli.training.stages.base import Stage, Whole
from kgcli.training.stages.parts import checkpoint_activations, compile_parts
from kgcli.training.trainer import Trainer
from kgcli.training.watch.faults import FaultLog
from kgcli.training.watch.trackers import check_trackers
from kgcli.training.watch.validation import Validation

CALIBRATION_SEED = 1 << 20  # seed of the samples that a result is calibrated on
ENDLESS = {"pool": None, "rendered": None, "keep": False}  # settings of data without a pool


class Run:
    """One training run of a recipe: its data, stage, trainer and files."""

    def __init__(self, recipe: Recipe) -> None:
        stage = find_stage(recipe.stage)
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.source = open_source(recipe.data, recipe.image_size, stage.use)
        check_source(recipe.stage, stage.needs_with(recipe.options), self.source)
        check_kinds(recipe.stage, stage.kinds, recipe.data)
        check_hidden(recipe, recipe.train in stage.takes_hidden, self.source)
        # Without `cpu` accelerate takes several CPU processes for as many separate runs.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        torch.manual_seed(recipe.seed)
        self.stage = make_stage(recipe, self.source.texts)
        self.stage.freeze()
        checkpoint_activations(self.stage, recipe)
        if recipe.pack is not None:
            self.stage.pack(recipe.pack)
        if recipe.data.weigh == "tokens":
            weigh_by_tokens(self.source, self.stage.collator(None).length)
        self.processes = find_processes(self.accelerator, recipe.parallel)
        check_batch_size(recipe, self.processes.num)
        if self.processes.shards:
            check_sharded_scalars(self.stage, recipe)
        self.module = self.processes.wrap(self.stage.to(self.device))
        self.trainer = Trainer(
            {name: p for name, p in self.stage.named_parameters() if p.requires_grad},
            recipe.optim,
            recipe.steps,
            ema_decay=recipe.ema_decay,
            processes=self.processes,
            scaler=gradient_scaler(self.device, recipe.precision),
            async_save=recipe.async_save,
        )
        self.losses = SplitLosses(self.stage, self.processes, recipe.accumulate, self.forward)
        self.metrics: Metrics | None = None  # of the main process, once it trains
        check_trackers(recipe)
        self.validation: Validation | None = None  # once it trains

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return self.trainer.trained

    def say(self, line: str) -> None:
        """Log progress once, not on every process."""
        if self.processes.is_main:
            say(line)

    def render(self) -> None:
        """Render the images of `data.rendered` that are missing."""
        # What is kept in memory has one caption a row, and is not the renderer's to fill.
        source = self.source.source if isinstance(self.source, KeptSource) else self.source
        if isinstance(source, RenderedSource):
            if self.processes.is_main:
                size, num_workers = self.recipe.image_size, self.recipe.data.num_workers
                make_rendered(source.folder, source, size, num_workers=num_workers, report=say)
            self.processes.wait()
            source.read_captions()

    def keep(self) -> None:
        """Read what `data.keep` keeps in several processes, where the loaders will share it and need all of it."""
        data, num = self.recipe.data, self.source.num_rows
        left = (self.recipe.steps - self.trainer.step) * data.batch_size
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        shared = self.processes.num == 1 and method == "fork"
        if isinstance(self.source, KeptSource) and data.num_workers > 1 and shared and left >= (num or 0):
            self.source.fill(data.num_workers, self.say)

    def pool(self) -> Pool | None:
        """Return the cached VAE moments of a stage that uses them, encoded now if they are missing."""
        moments = self.recipe.data.moments
        folder = self.folder / "pool" if moments is None else Path(moments)
        return self.make_pool(folder, self.source, shared=moments is not None)

    def make_pool(self, folder: Path, source: Source, *, shared: bool = False) -> Pool | None:
        """Return the VAE moments of a source, cached in a folder that other runs may share."""
        if not self.stage.uses_pool:
            return None
        diffusion = self.stage.diffusion
        assert isinstance(diffusion, Diffusion), "a stage with a pool has a decoder"
        return make_pool(
            folder,
            source,
            diffusion,
            self.processes,
            self.device,
            image_size=self.recipe.image_size,
            precision=self.recipe.precision,
            num_workers=self.recipe.data.num_workers,
            shared=shared,
        )

    def batches(self, pool: Pool | None, first: int) -> Iterator[Batch]:
        """Yield the batches from step `first` on, prefetched by worker processes."""
        data = self.recipe.data
        collator = self.stage.collator(pool)
        collator.uint8 = self.device.type != "cpu"
        collator.hidden = self._hidden(collator) if data.hidden else None
        batches = Batches(
            self.source,
            collator,
            batch_size=data.batch_size,
            bucket=data.bucket,
            seed=data.seed,
            rank=self.processes.rank,
            num_ranks=self.processes.num,
            kind_of=kind_of_steps(self.source),
        )
        loaded = load_batches(batches, first, self.recipe.steps, data.num_workers)
        faults = FaultLog(self.folder / "faults.jsonl", data.max_faults, writes=self.processes.is_main)
        return read_together(loaded, self.processes, faults.note)

    def _hidden(self, collator: Collator) -> HiddenStates:
        """Return the cached hidden states of the frozen MLLM, computed now if they are missing."""
        model, folder = self.stage.model, self.folder / "hidden"
        assert isinstance(model, KosmosG), "a stage that takes hidden states has an MLLM"
        return make_hidden(
            folder,
            self.source,
            collator,
            model,
            self.processes,
            self.device,
            self.recipe.precision,
            self.recipe.data,
        )

    def random(self, numbers: Sequence[int]) -> StepRandom:
        """Return the randomness of samples at the step reached; also seed the global generator, for dropout."""
        random = step_random(self.recipe.seed, self.trainer.step, numbers, self.device)
        # Dropout alone is drawn for a micro-batch's samples together: its masks follow the first of them.
        torch.manual_seed(random.dropout_seed)
        return random

    def forward(self, batch: Batch, *whole: Whole) -> dict[str, Tensor]:
        """Return the losses of a micro-batch at the step reached."""
        return self.call(batch, self.random(batch.numbers), *whole)

    def call(self, batch: Batch, random: StepRandom, *whole: Whole) -> dict[str, Tensor]:
        """Return the losses of a micro-batch with the given randomness."""
        with autocast(self.device, self.recipe.precision):
            losses: dict[str, Tensor] = self.module(batch.to(self.device), random, *whole)
        return {name: loss.float() for name, loss in losses.items()}

    def preview(self, pool: Pool | None) -> Tensor | None:
        """Return preview images of the running-mean weights for one batch, whose sample numbers no step takes."""
        size = self.recipe.data.batch_size
        batches = Batches(self.source, self.stage.collator(pool), batch_size=size)
        batch = batches[EVALUATION_STEP // size].to(self.device)
        self.stage.eval()
        # Other shapes than training's: compiling for them would take longer than the preview.
        context = autocast(self.device, self.recipe.precision)
        with self.trainer.averaged(), unsharded(self.stage), context, torch.compiler.set_stance("force_eager"):
            images = self.stage.preview(batch, torch.Generator().manual_seed(0))
        self.stage.train()
        return images

    def save(self) -> Path:
        """Write a checkpoint of the step reached."""
        more = self.metrics.state() if self.metrics is not None else {}
        return self.trainer.save(self.folder, dump_recipe(self.recipe), self.recipe.keep_checkpoints, more)

    def export(self, out: Path | None = None) -> Path:
        """Write the result, into `final` of the run or another folder, on the main process; return its folder.

        All processes call this.
        """
        final = out or self.folder / "final"
        with self.trainer.averaged(), torch.no_grad():
            weights = self.processes.full(self.trained) if self.processes.shards else {}
            if self.processes.is_main:
                stage = self._whole_stage(weights) if weights else self.stage
                stage.eval()
                with whole_folder(final, overwrite=True) as partial:
                    stage.calibrate(self._calibration_sample)
                    stage.export(partial)
        self.processes.wait()  # the next run of any process may start from the result
        return final

    def _whole_stage(self, weights: Mapping[str, Tensor]) -> Stage:
        """Build the stage again, with trained weights gathered from all processes."""
        stage = make_stage(self.recipe, self.source.texts)
        with torch.no_grad():
            for name, weight in weights.items():
                stage.get_parameter(name).copy_(weight)
        return stage

    @functools.cached_property
    def _calibration_source(self) -> Any:
        data = self.recipe.data.model_copy(update={"seed": CALIBRATION_SEED, **ENDLESS})
        return open_source(data, self.recipe.image_size, self.stage.use)

    def _calibration_sample(self, index: int) -> Sample:
        sample: Sample = self._calibration_source.sample(index)
        return sample


def start(run: Run) -> None:
    """Compile the parts that the recipe asks for, and set the stage to training."""
    compile_parts(run.stage, run.recipe)
    run.module.train()

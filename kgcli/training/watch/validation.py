"""Losses of held-out samples, with the same samples and noise each time, for the weights that would be exported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kgcli.data.batch import Batch
from kgcli.data.loader import EVALUATION_STEP, Batches
from kgcli.data.sources import open_source
from kgcli.data.sources.base import Source
from kgcli.data.sources.mixture import weigh_by_tokens
from kgcli.errors import ConfigError
from kgcli.model.randomness import StepRandom
from kgcli.recipe import DataConfig, Recipe
from kgcli.training.checks.data import check_kinds, check_source
from kgcli.training.parallel import unsharded
from kgcli.training.split import SplitLosses

if TYPE_CHECKING:
    from kgcli.training.run import Run
    from kgcli.training.stages.base import Stage, Whole

SEED = 1 << 21  # of held-out samples of the nano world: no recipe's own, see kgcli.config.Seed
POOL = "validation-pool"  # folder inside a run folder: cached VAE moments of the held-out images


def held_out(recipe: Recipe) -> DataConfig:
    """Return the data of the held-out samples: the recipe's own files for them, or new ones of the nano world.

    Raises: ConfigError for a recipe of files that names no others.
    """
    data, cfg = recipe.data, recipe.validation
    if not data.kinds and not cfg.sources:
        raise ConfigError(
            "validation.every needs validation.sources, files that are not in data.sources: every sample of those "
            "is trained on"
        )
    changes: dict[str, Any] = {"rendered": None, "keep": False, "bucket": 1}
    if cfg.sources:
        return data.model_copy(update={**changes, "kinds": {}, "pool": None, "sources": cfg.sources})
    return data.model_copy(update={**changes, "seed": SEED, "pool": cfg.samples})


def open_held_out(recipe: Recipe, stage: type[Stage]) -> Source:
    """Open the held-out samples, checked as training's are. Raises: ConfigError, MissingError."""
    data = held_out(recipe)
    source = open_source(data, recipe.image_size, stage.use)
    check_source(recipe.stage, stage.needs_with(recipe.options), source)
    check_kinds(recipe.stage, stage.kinds, data)
    return source


class Validation:
    """The held-out batches of a run. They take no number from training's randomness."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.source = open_held_out(run.recipe, type(run.stage))
        if run.recipe.data.weigh == "tokens" and len(run.recipe.validation.sources) > 1:
            weigh_by_tokens(self.source, run.stage.collator(None).length)
        size = run.recipe.data.batch_size
        self.num_batches = math.ceil(run.recipe.validation.samples / size)
        pool = run.make_pool(run.folder / POOL, self.source)
        rank, num_ranks = run.processes.rank, run.processes.num
        self.batches = Batches(self.source, run.stage.collator(pool), batch_size=size, rank=rank, num_ranks=num_ranks)
        self.losses = SplitLosses(run.stage, run.processes, run.recipe.accumulate, self._forward)

    def __call__(self) -> dict[str, float]:
        """Return the mean losses, the same in all processes; every process calls this."""
        run, sums = self.run, torch.zeros(())
        names: list[str] = []
        state = torch.get_rng_state()
        run.stage.eval()
        # Other shapes than training's may come up: compiling for them would take longer.
        with run.trainer.averaged(), unsharded(run.stage), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for step in range(self.num_batches):
                for named in self.losses(self.batches[step]):
                    names = list(named)
                    sums = sums + torch.stack(list(named.values()))
        run.stage.train()
        torch.set_rng_state(state)
        means = (run.processes.add(sums) / self.num_batches).tolist()
        values = dict(zip(names, means, strict=True))
        return {**values, "loss": sum(means)}

    def _forward(self, batch: Batch, *whole: Whole) -> dict[str, Tensor]:
        random = StepRandom(self.run.recipe.seed, EVALUATION_STEP, batch.numbers)
        torch.manual_seed(random.dropout_seed)
        return self.run.call(batch, random, *whole)

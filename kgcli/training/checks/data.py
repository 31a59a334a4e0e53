"""Checks of a recipe's data before a stage is built."""

from __future__ import annotations

from kgcli.data.batch import sample_fields
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError
from kgcli.recipe import Recipe
from kgcli.training.stages.base import Stage


def check_source(name: str, stage: type[Stage], source: Source) -> None:
    """Check that all samples of a source have what a stage needs.

    Raises: ConfigError.
    """
    missing = sample_fields(stage.needs) - source.gives
    if missing:
        raise ConfigError(
            f"stage {name} needs samples with {' and '.join(sorted(missing))}, "
            "which not all samples of this recipe's data have"
        )


def check_batch_size(recipe: Recipe, num_processes: int) -> None:
    """Check that processes and micro-batches divide the batch. Raises: ConfigError."""
    size, accumulate = recipe.data.batch_size, recipe.accumulate
    if size % (num_processes * accumulate):
        own = f"{accumulate} micro-batches"
        shares = f"{num_processes} processes x {own}" if num_processes > 1 else own
        raise ConfigError(
            f"data.batch_size is {size}, which {shares} cannot split evenly; "
            f"make it a multiple of {num_processes * accumulate}"
        )


def check_pool_source(source: Source) -> None:
    """Check that the VAE moments of a source can be cached.

    Raises: ConfigError for an endless one.
    """
    if source.num_rows is None:
        raise ConfigError(
            "this stage works on cached VAE moments, and the nano world is endless: "
            "set data.pool to the number of its images"
        )

"""Checks of a recipe's data before a stage is built."""

from __future__ import annotations

from kgcli.data.batch import sample_fields
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError
from kgcli.recipe import DataConfig, Recipe


def check_source(name: str, needs: frozenset[str], source: Source) -> None:
    """Check that all samples of a source have what a stage needs.

    Raises: ConfigError.
    """
    missing = sample_fields(needs) - source.gives
    if missing:
        raise ConfigError(
            f"stage {name} needs samples with {' and '.join(sorted(missing))}, "
            "which not all samples of this recipe's data have"
        )


def check_kinds(name: str, kinds: frozenset[str], data: DataConfig) -> None:
    """Check that the samples of the nano world in a recipe are of the kinds that a stage is made for.

    Args:
        kinds: of the stage; none stands for all

    Raises: ConfigError.
    """
    mixtures = [data.kinds, *(cfg.kinds for cfg in data.sources if cfg.kind == "world")]
    others = {kind for mixture in mixtures for kind, weight in mixture.items() if weight > 0} - kinds
    if kinds and others:
        raise ConfigError(
            f"stage {name} trains on samples of kind {' and '.join(sorted(kinds))} alone; "
            f"remove {' and '.join(sorted(others))} from the recipe's kinds"
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


def check_hidden(recipe: Recipe, takes_them: bool, source: Source | None) -> None:
    """Check that `data.hidden`, if it is set, can cache a frozen MLLM's states.

    Args:
        takes_them: the stage has a frozen MLLM and can read its states from a cache
        source: the data, if they are on this machine

    Raises: ConfigError.
    """
    if not recipe.data.hidden:
        return
    if not takes_them:
        raise ConfigError(f"data.hidden: stage {recipe.stage} has no frozen MLLM whose states it could cache")
    if source is not None and source.num_rows is None:
        raise ConfigError("data.hidden: the source is endless: set data.pool and data.keep, or use files or shards")

"""Sources of training samples, opened from the data part of a recipe."""

from __future__ import annotations

from pathlib import Path

from kgcli.data.sources.base import Source, Use
from kgcli.recipe import DataConfig, SourceConfig


def open_source(data: DataConfig, image_size: int, use: Use) -> Source:
    """Open the source of a run: the nano world, or a mixture of files.

    Args:
        image_size: pixels of the images in world samples
        use: of images that come with a caption

    Raises: ConfigError, MissingError, UsageError: a kind, file, line or filter is wrong or not there.
    """
    found = _open_mixture(data, image_size, use) if data.sources else _open_world(data, data.kinds, image_size)
    if data.rendered is not None:
        from kgcli.data.sources.rendered import RenderedSource

        found = RenderedSource(found, Path(data.rendered))
    if data.keep and found.num_rows:
        from kgcli.data.sources.kept import KeptSource

        return KeptSource(found)
    return found


def _open_world(data: DataConfig, kinds: dict[str, float], image_size: int, number: int = 0) -> Source:
    from kgcli.data.sources.world_source import WorldSource

    return WorldSource(
        kinds,
        seed=data.seed + (number << 32),  # two world sources of a mixture must not give the same samples
        image_size=image_size,
        pool=data.pool,
        drop_entity_text=data.drop_entity_text,
        keep_background=data.keep_background,
    )


def _open_mixture(data: DataConfig, image_size: int, use: Use) -> Source:
    for cfg in data.sources:
        if cfg.filters.where:
            from kgcli.data.shards.filters import RowFilter

            RowFilter(cfg.filters)  # refuses a wrong condition before a source is read
    opened = [_open(data, number, cfg, image_size, use) for number, cfg in enumerate(data.sources)]
    if len(opened) == 1:
        return opened[0]
    from kgcli.data.sources.mixture import Mixture

    together = data.batch_size if data.mix == "per_batch" else 1
    return Mixture(opened, [cfg.weight for cfg in data.sources], seed=data.seed, together=together)


def _open(data: DataConfig, number: int, cfg: SourceConfig, image_size: int, use: Use) -> Source:
    seed = (data.seed, number)  # the number apart, two sources of one length would have the same order
    if cfg.kind == "world":
        return _open_world(data, cfg.kinds, image_size, number)
    if cfg.kind == "shards":
        from kgcli.data.shards.read import Words
        from kgcli.data.sources.sharded import open_shards

        words = Words(use, data.drop_entity_text, data.keep_background, cfg.as_published)
        return open_shards(cfg, words, seed=seed, faults=data.faults)
    if cfg.kind == "dataset":
        from kgcli.data.sources.dataset import open_dataset

        return open_dataset(cfg, use=use, seed=seed, faults=data.faults)
    from kgcli.data.sources.files import open_file

    return open_file(cfg.kind, cfg.path, use=use, seed=seed, faults=data.faults)

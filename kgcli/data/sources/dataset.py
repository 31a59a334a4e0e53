"""A Hugging Face dataset as a source: one on the Hub, or a folder that `datasets` reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgcli.data.folders import load_folder, read_cell
from kgcli.data.images import decode_image
from kgcli.data.sample import Decoded, Fragments, Sample, Target
from kgcli.data.sources.base import Use
from kgcli.data.sources.rows import RowOrder, RowSource, stamp_of
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.recipe import OnFault, SourceConfig

COLUMNS = {"image": ("image", "img", "jpg", "png"), "caption": ("caption", "text", "txt")}  # looked for, in this order


class DatasetSource(RowSource):
    """Rows of a dataset with an image, a caption, or both."""

    def __init__(
        self,
        rows: Any,
        columns: Mapping[str, str],
        name: str,
        *,
        use: Use,
        seed: tuple[int, int],
        faults: OnFault = "stop",
        folders: Sequence[Path] = (),
    ) -> None:
        """Args:
        rows: a map-style dataset whose images are not decoded
        columns: image, caption -> its column
        name: of the dataset, for messages
        folders: where the files are that its cells may name
        """
        of_pair = {"read": {"fragments", "images"}, "match": {"images"}, "generate": {"fragments"}}[use]
        gives = {"target"} if "image" in columns else {"fragments"}
        gives |= {"caption"} if "caption" in columns else set()
        gives |= of_pair if set(columns) == {"image", "caption"} or use == "match" and "image" in columns else set()
        super().__init__(frozenset(gives), len(rows), seed, faults)
        self.rows = rows
        self.columns = dict(columns)
        self._texts = rows.select_columns([columns["caption"]]) if "caption" in columns else rows.select_columns([])
        self.name = name
        self.use = use
        self.folders = tuple(folders)
        self._order = RowOrder(len(rows), seed)

    def row_of(self, index: int) -> int:
        """Return the row of a sample."""
        return self._order.row(index)

    def load(self, row: int, number: int) -> Sample:
        """Return a row as a sample. Raises: MissingError, ImageError: a cell is empty or no image."""
        cells, origin = self.rows[row], f"{self.name} row {row}"
        caption = self._caption(cells, origin)
        if "image" not in self.columns:
            return Sample(self._told(caption), (), caption, None, origin)
        image = _image(cells[self.columns["image"]], self.folders, f"{origin}: its {self.columns['image']}")
        target = Decoded(Target(image))
        images = () if self.use == "generate" else (image,)
        return Sample(self._told(caption), images, caption, target, origin)

    def told(self, row: int, number: int) -> Fragments:
        """Return the fragments of a row."""
        return self._told(self._caption(self._texts[row], f"{self.name} row {row}"))

    def place_of(self, row: int) -> tuple[str, str]:
        """Return the dataset's name and the row's number."""
        return self.name, str(row)

    def texts(self, num: int, seed: int) -> list[str]:
        """Return the captions of `num` rows, or of all there are; those that are no text are left out."""
        if "caption" not in self.columns:
            return []
        order = np.random.default_rng([22, seed]).permutation(len(self.rows))[:num]
        found = []
        for row in map(int, order):
            try:
                found.append(self._caption(self._texts[row], f"{self.name} row {row}"))
            except MissingError:
                continue
        return found

    def content(self) -> dict[str, Any]:
        """Return the library's own fingerprint of the rows, their columns, and a hash of the files they name."""
        files = hashlib.sha256()
        if "image" in self.columns and self.folders:
            for path in _named_files(self.rows, self.columns["image"]):
                files.update(f"{stamp_of(self.folders[0] / path) if path else ''}\n".encode())
        return {
            "dataset": self.rows._fingerprint,
            "num": self.num_rows,
            "columns": self.columns,
            "files": files.hexdigest(),
        }

    def _told(self, caption: str) -> Fragments:
        if "image" not in self.columns or self.use == "generate":
            return (caption,) if caption else ()
        return (None, f" {caption}") if self.use == "read" else ()

    def _caption(self, cells: Mapping[str, Any], origin: str) -> str:
        if "caption" not in self.columns:
            return ""
        value = cells[self.columns["caption"]]
        if isinstance(value, list) and value:  # of several captions, the first
            value = value[0]
        if not isinstance(value, str) or not value.strip():
            raise MissingError(f"{origin}: {self.columns['caption']} is {str(value)[:80]!r}; it must be a text")
        return value.strip()


def open_dataset(cfg: SourceConfig, *, use: Use, seed: tuple[int, int], faults: OnFault) -> DatasetSource:
    """Open a dataset by the name of its Hub repository or by its folder.

    Raises: UsageError without the library or for a wrong column, MissingError where it is not there.
    """
    rows = _load(cfg)
    columns: dict[str, str] = {str(name): column for name, column in cfg.columns.items()} or {
        name: found
        for name, usual in COLUMNS.items()
        if (found := next((one for one in usual if one in rows.column_names), None)) is not None
    }
    for column in columns.values():
        if column not in rows.column_names:
            raise UsageError(f"data.sources: {cfg.path} has no column {column}; it has {', '.join(rows.column_names)}")
    if not columns:
        raise UsageError(
            f"data.sources: {cfg.path} has the columns {', '.join(rows.column_names)}: name its image or caption "
            "in columns, as in {caption: title}"
        )
    if not len(rows):
        raise MissingError(f"data.sources: {cfg.path} is empty")
    return DatasetSource(rows, columns, cfg.path, use=use, seed=seed, faults=faults, folders=_folders(cfg))


def _load(cfg: SourceConfig) -> Any:
    """Return the rows of a split, their images as bytes."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"data.sources: {cfg.path} needs the package datasets: pip install datasets") from None
    try:
        if Path(cfg.path).is_dir():
            found = load_folder(Path(cfg.path))
            rows = found[cfg.split] if isinstance(found, datasets.DatasetDict) else found
        else:
            rows = datasets.load_dataset(cfg.path, split=cfg.split)
    except KeyError:
        raise MissingError(f"data.sources: {cfg.path} has no split {cfg.split}; it has {', '.join(found)}") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingError(f"data.sources: {cfg.path} cannot be opened: {' '.join(str(error).split())}") from None
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _folders(cfg: SourceConfig) -> list[Path]:
    """Return the folders below which cells name images: the dataset's own, or where the Hub's files are kept."""
    if Path(cfg.path).is_dir():
        return [Path(cfg.path)]
    from datasets import config

    hub = os.environ.get("HF_HUB_CACHE") or Path(config.HF_CACHE_HOME) / "hub"
    return [Path(hub), Path(config.HF_DATASETS_CACHE)]


def _named_files(rows: Any, column: str) -> Iterator[str | None]:
    """Yield the path that each cell of a column names, None for a cell that holds the image's bytes or nothing."""
    import pyarrow
    import pyarrow.compute as compute

    for batch in rows.select_columns([column]).with_format("arrow").iter(1000):
        cells = batch.column(column)
        names = {field.name for field in cells.type} if pyarrow.types.is_struct(cells.type) else set()
        if "path" not in names:
            continue
        paths = compute.struct_field(cells, "path")
        if "bytes" in names:  # which are not read
            paths = compute.if_else(compute.is_null(compute.struct_field(cells, "bytes")), paths, None)
        yield from paths.to_pylist()


def _image(cell: Any, folders: Sequence[Path], name: str) -> Image.Image:
    """Return the image of a cell: bytes, or the path of a file."""
    data = read_cell(cell, folders, name)
    if data is None:
        raise ImageError(f"{name} holds no image")
    return decode_image(data, name)

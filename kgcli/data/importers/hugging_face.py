"""Hugging Face data sets: a folder that `save_to_disk` wrote, a folder of files, or a Hub id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kgcli.data.folders import load_folder, read_cell
from kgcli.data.importers.base import Filled, ImportOptions, Item, broken, pair_of
from kgcli.data.shards.records import Text
from kgcli.data.where import check_columns
from kgcli.errors import MissingError, UsageError
from kgcli.runtime import is_offline

IMAGES = ("image", "jpg", "png", "webp", "img")  # columns, by precedence
CAPTIONS = ("caption", "text", "txt", "prompt", "sentence")


class HuggingFace:
    """Captioned images, or texts where there is no image; columns by their usual names or as given."""

    name = "hugging-face"
    layout = "Hugging Face data set: a folder or Hub id; columns by -c image=NAME -c caption=NAME"
    uses = frozenset({"columns", "split", "where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the rows of a split."""
        folder = Path(source).expanduser()
        data = _load(source, folder, options.split)
        columns = list(data.features or {})
        image = _column(options, "image", IMAGES, columns, needed=False)
        caption = _column(options, "caption", CAPTIONS, columns, needed=True)
        check_columns(options.where, columns, source)
        if image:
            data = _undecoded(data, image)
        needed = dict.fromkeys([name for name in (image, caption) if name] + [one.column for one in options.where])
        name = f"{folder.name} {options.split}"
        for number, row in _rows(data.select_columns(list(needed)), name):
            origin = f"{name} row {number}"
            if isinstance(row, MissingError):
                yield broken(origin, row)
            else:
                yield Item(origin, partial(_read, row, image, caption, origin, folder, options))


def _load(source: str, folder: Path, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError("hugging-face needs the package datasets: pip install 'kgcli[data]'") from None
    try:
        if not folder.exists():
            if is_offline():
                raise MissingError(f"there is no folder {source}, and nothing is downloaded offline")
            return datasets.load_dataset(source, split=split, streaming=True)
        found = load_folder(folder, streaming=True)
        if isinstance(found, dict):
            if split not in found:
                raise UsageError(f"{source} has no split {split}; it has {', '.join(found)}")
            return found[split]
        return found
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingError(f"{source} is no data set that can be read: {' '.join(str(error).split())[:200]}") from None


def _rows(data: Any, name: str) -> Iterator[tuple[int, Any]]:
    """Yield the numbered rows of a data set; where its files are damaged, an error and no more."""
    import datasets

    number = 0
    try:
        for row in data:
            yield number, row
            number += 1
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        message = " ".join(str(error).split())[:200]
        yield number, MissingError(f"{name} is damaged from row {number} on: {message}")


def _undecoded(data: Any, column: str) -> Any:
    """Return the data with an image column as bytes and names, none of them opened by the library."""
    import datasets

    feature = data.features[column]
    return data.cast_column(column, datasets.Image(decode=False)) if isinstance(feature, datasets.Image) else data


def _column(options: ImportOptions, field: str, names: tuple[str, ...], there: list[str], *, needed: bool) -> str:
    asked = options.columns.get(field)
    if asked is not None and asked not in there:
        raise UsageError(f"there is no column {asked}; there are {', '.join(there)}")
    found = asked or next((name for name in names if name in there), "")
    if needed and not found:
        raise UsageError(f"none of the columns {', '.join(there)} is a {field}; name it with -c {field}=NAME")
    return found


def _read(row: Any, image: str, caption: str, origin: str, folder: Path, options: ImportOptions) -> Iterable[Filled]:
    options.check(row)
    words = row[caption]
    if isinstance(words, list) and words:
        words = words[0]
    if not isinstance(words, str):
        raise MissingError(f"{origin}: {caption} is no text")
    if not image:
        return [(Text(text=words, origin=origin), {})]
    data = read_cell(row[image], [folder] if folder.is_dir() else [], origin)
    if data is None:
        raise MissingError(f"{origin}: {image} holds no image")
    return [pair_of(data, words.strip(), origin)]

"""Folders of strangers: the data files of a Hugging Face data set and its images, all of them below the folder.

`datasets` would obey the folder's README.md, which may name any path or URL; here the files are listed without it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from kgcli.data.entries import is_data
from kgcli.data.images import MAX_BYTES, SUFFIXES
from kgcli.errors import MissingError, printable, reason
from kgcli.files import check_inside
from kgcli.reading import read_bytes, read_json

FORMATS = {  # of a data set's files -> suffixes; in this order where two have as many
    "parquet": (".parquet",),
    "imagefolder": SUFFIXES,
    "arrow": (".arrow",),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "text": (".txt",),
}
BUILDERS: dict[str, tuple[str, dict[str, str]]] = {"tsv": ("csv", {"sep": "\t"})}  # of `datasets`, with its options
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images
NO_ROWS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
SPLITS = {  # words in the names of files and folders, as `datasets` has them
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_NO_WORD = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"data/(\w+)-\d{5}-of-\d{5}[^/]*")


def load_folder(folder: Path, *, streaming: bool = False) -> Any:
    """Return the data set of a folder with `datasets`: its splits, or the rows that `save_to_disk` wrote.

    Raises: MissingError where it holds no data files, or names some elsewhere.
    """
    import datasets

    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        _check_saved(folder)
        return datasets.load_from_disk(str(folder))
    kind, files = list_splits(folder)
    builder, options = BUILDERS.get(kind, (kind, {}))
    return datasets.load_dataset(builder, data_files=files, streaming=streaming, **options)


def list_splits(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the format of a folder's data files and the files of each split. Raises: MissingError."""
    names = sorted(_names(folder))
    kind = _format(names)
    check_inside(folder, (found := [name for name in names if _is_of(name, kind)]))
    root = folder.absolute()
    splits = _by_split(found, of_images=kind == "imagefolder")
    return kind, {split: [_pattern(root / name) for name in names] for split, names in splits.items()}


def read_below(folder: Path, name: str, origin: str) -> bytes:
    """Return the bytes of an image that a foreign file names, which must be in a folder.

    Raises: MissingError that names `origin`, also for a name that leads out of the folder.
    """
    check_below(folder, name, origin)
    try:
        return read_bytes(folder / name, max_bytes=MAX_BYTES)
    except MissingError as error:
        raise MissingError(f"{origin}: {error}") from None


def check_below(folder: Path, name: str, origin: str) -> None:
    """See that a name in a foreign file is one that a file below a folder can have.

    Raises: MissingError that names `origin`, also for a name that is too long.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise MissingError(f"{origin} names the image {name[:200]!r}, which is not a path below {folder}")
    try:
        check_inside(folder, [name])
        (folder / name).is_file()  # raises for a name that is too long
    except (OSError, ValueError, RuntimeError) as error:
        why = "links in a ring" if isinstance(error, RuntimeError) else reason(error)
        raise MissingError(f"{origin} names the image {name[:200]!r}: {why}") from None


def read_cell(cell: Any, folders: Iterable[Path], origin: str) -> bytes | None:
    """Return the image of a cell: its bytes, or a file below one of the folders; None where it holds neither.

    Raises: MissingError for a path elsewhere.
    """
    given = cell if isinstance(cell, dict) else {"bytes": cell}
    if isinstance(given.get("bytes"), bytes):
        return bytes(given["bytes"])
    if not isinstance(given.get("path"), str):
        return None
    path, roots = Path(given["path"]), [folder.absolute() for folder in folders]
    if not roots:
        return None
    root = next((one for one in roots if path.is_relative_to(one)), roots[0])
    inside = path.is_relative_to(root)
    return read_below(root, path.relative_to(root).as_posix() if inside else given["path"], origin)


def _names(folder: Path) -> Iterator[str]:
    """Yield the files below a folder; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if is_data(name) and not name.startswith("__")]
        for name in files:
            if is_data(name) and name not in NO_ROWS:
                yield (Path(place) / name).relative_to(folder).as_posix()


def _format(names: list[str]) -> str:
    counts = {one: sum(_is_of(name, one) and not _is_metadata(name) for name in names) for one in FORMATS}
    if counts["parquet"]:  # pictures beside it are those of a page
        return "parquet"
    if not any(counts.values()):
        raise MissingError("the folder holds no parquet, Arrow, JSON, CSV, TSV or text files and no images")
    if any(number for one, number in counts.items() if one != "text"):
        counts["text"] = 0  # texts beside other files are captions, licences and notes
    return max(counts, key=lambda one: counts[one])


def _is_metadata(name: str) -> bool:
    return PurePosixPath(name).name in METADATA


def _is_of(name: str, kind: str) -> bool:
    return name.lower().endswith(FORMATS[kind]) or kind == "imagefolder" and _is_metadata(name)


def _by_split(names: list[str], *, of_images: bool) -> dict[str, list[str]]:
    """Return the files of each split by names of shards, of folders, or of files; without any, all are of train."""
    for split_of in (_split_of_shard, _split_of_folder, *(() if of_images else (_split_of_file,))):
        found: dict[str, list[str]] = {}
        for name in names:
            if split := split_of(name):
                found.setdefault(split, []).append(name)
        if found:
            return found
    return {"train": names}


def _split_of_shard(name: str) -> str:
    found = _SHARD.fullmatch(name)
    return found.group(1) if found else ""


def _split_of_folder(name: str) -> str:
    return next((split for part in PurePosixPath(name).parts[:-1] if (split := _split_in(part))), "")


def _split_of_file(name: str) -> str:
    return _split_in(PurePosixPath(name).name)


def _split_in(name: str) -> str:
    words = set(_NO_WORD.split(name))
    return next((split for split, named in SPLITS.items() if words & named), "")


def _pattern(path: Path) -> str:
    """Return a path as `datasets` takes it: a pattern, in which `::` would begin another address."""
    if "::" in str(path) or "://" in str(path):
        raise MissingError(f"{printable(path)} cannot be the name of a data file; rename it")
    return glob.escape(str(path))


def _check_saved(folder: Path) -> None:
    """See that the files of a saved data set name only files in it. Raises: MissingError."""
    names = [""]
    if (folder / "dataset_dict.json").is_file():
        names = _listed(folder / "dataset_dict.json", "splits")
    for name in names:
        below = folder / name
        state = read_json(below / "state.json")
        listed = state.get("_data_files") if isinstance(state, dict) else None
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise MissingError(f"{printable(below / 'state.json')} does not list its files")
        files = _plain([one.get("filename") for one in listed], below / "state.json")
        check_inside(folder, [str(PurePosixPath(name) / one) for one in (*files, "state.json", "dataset_info.json")])


def _listed(path: Path, field: str) -> list[str]:
    value = read_json(path)
    return _plain(value.get(field) if isinstance(value, dict) else None, path)


def _plain(names: Any, path: Path) -> list[str]:
    """Return names of files of one folder. Raises: MissingError."""
    if not isinstance(names, list):
        raise MissingError(f"{printable(path)} is no list of names")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0:]", name):
            raise MissingError(f"{printable(path)} names {str(name)[:200]!r}, which is not in its folder")
    return names

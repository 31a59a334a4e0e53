"""Entries of a folder that are data, without the files that operating systems and programs add."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# macOS archives, Synology, Jupyter, Windows; names with a dot first are hidden everywhere.
_NOT_DATA = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information"})


def is_data(name: str) -> bool:
    """Return True unless the name is hidden or belongs to a system file."""
    return not name.startswith(".") and name not in _NOT_DATA


def data_files(folder: Path, *, suffixes: tuple[str, ...], recursive: bool = False) -> Iterator[Path]:
    """Yield the files of a folder with these suffixes, in any case, sorted by path; links to folders are followed."""
    yield from sorted(_files(folder, suffixes, recursive, seen=(folder.resolve(),)))


def _files(folder: Path, suffixes: tuple[str, ...], recursive: bool, seen: tuple[Path, ...]) -> Iterator[Path]:
    for path in folder.iterdir():
        if not is_data(path.name):
            continue
        if path.is_dir():
            if recursive and (real := path.resolve()) not in seen:  # a link to a folder above would never end
                yield from _files(path, suffixes, recursive, (*seen, real))
        elif path.suffix.lower() in suffixes and path.is_file():
            yield path

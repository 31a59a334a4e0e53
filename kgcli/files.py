"""Whole-file and whole-folder writes, folder locks and hashes. (The bounded reader is `kgcli.reading`.)

A write lands in a temporary name beside its target (random, opened exclusively), is flushed to the disk and renamed:
at any moment, and after a kill, the file holds either the old or the new content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kgcli.errors import BusyError, MissingError, OutputError, printable, reason

PACKAGE = Path(__file__).resolve().parent
PARTIAL = ".partial"  # ends every temporary name; such a name also begins with a dot
_NAME_BYTES = 200  # of the target's name that a temporary name repeats; file systems take 255


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn a failed file operation, or a name that no file can have, into one line about `path`.

    Raises: OutputError.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise OutputError(f"{printable(path)} cannot be written: {reason(error)}") from None
    try:
        yield
    except OSError as error:
        raise OutputError(f"{printable(path)} cannot be written: {reason(error)}") from None


def check_inside(folder: Path, names: Iterable[str]) -> None:
    """See that no link leads from names below a folder out of it: a folder of a stranger shows only itself.

    Raises: MissingError.
    """
    root = folder.resolve()
    parents: dict[Path, bool] = {}
    for name in names:
        path = folder / name
        if path.parent not in parents:
            parents[path.parent] = path.parent.resolve().is_relative_to(root)
        if not parents[path.parent] or (path.is_symlink() and not path.resolve().is_relative_to(root)):
            raise MissingError(f"{printable(path)} is a link that leads out of {printable(folder)}; it is not followed")


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises: OutputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder {printable(folder)} cannot be made: {reason(error)}") from None


def write_whole(path: Path, data: bytes | str, *, overwrite: bool = True) -> None:
    """Write a file as a whole. Without `overwrite`, one that is there by now stays.

    Raises: OutputError.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give an empty temporary file to write to; it becomes `path` when the block ends well, and goes otherwise.

    Raises: OutputError.
    """
    with output_errors(path):
        partial = temporary_name(path)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield partial
            _flush(partial)
            if overwrite:
                os.replace(partial, path)
            else:
                _move_to_free_name(partial, path)
            _flush_folder(path.parent)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder to fill; it becomes `path` when the block ends well, and goes otherwise.

    An empty folder at `path` gives way; one with files in it only with `overwrite`, when the new one is complete.

    Raises: OutputError.
    """
    make_folder(path.parent)
    with output_errors(path):
        partial = temporary_name(path)
        partial.mkdir()
        try:
            yield partial
            flush_tree(partial)
            if overwrite and path.exists():
                _exchange(partial, path)
            else:
                partial.rename(path)
            _flush_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Return a random name beside `path` that nobody can foresee."""
    kept = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])
    return path.with_name(f".{kept}.{secrets.token_hex(8)}{PARTIAL}")


def claim(path: Path) -> None:
    """Create an empty file that was not there: of several processes, one succeeds.

    Raises: OutputError.
    """
    with output_errors(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder of which the caller holds the lock."""
    for left in folder.glob(f".*{PARTIAL}"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, name: str = ".lock") -> Iterator[None]:
    """Keep other processes out of a folder for as long as the block runs; a killed process lets go of it.

    Raises: BusyError where another process holds it; OutputError.
    """
    make_folder(folder)
    lock = FileLock(folder / name)
    with output_errors(folder / name):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"another kg is at work in {printable(folder)}; wait for it, or use another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def flush_tree(folder: Path) -> None:
    """Flush all files of a folder, and the folders themselves, to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _flush(Path(place, name))
        _flush_folder(Path(place))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, on systems where a folder can be opened and flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move_to_free_name(partial: Path, path: Path) -> None:
    """Rename without ever replacing a file: a hard link fails where the name is taken."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise OutputError(f"{printable(path)} was made by someone else meanwhile; it is left as it is") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        claim(path)  # this file system has no hard links
        os.replace(partial, path)


def _exchange(partial: Path, path: Path) -> None:
    """Put a folder in the place of another, which moves back if that fails and goes if it succeeds.

    Of a link to a folder the link goes; a file is not a folder's to replace.
    """
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    old = temporary_name(path)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)

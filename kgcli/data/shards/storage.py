"""Bytes of shards wherever they are: local files, http(s) servers, or any file system that fsspec knows."""

from __future__ import annotations

import errno
import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from kgcli.data.shards import web
from kgcli.data.shards.layout import DATASET, read_dataset
from kgcli.errors import MissingError, PassingError, UsageError, printable, reason

MOST_OPEN = 128  # local files kept open at once
MOST_SHARDS = 10**6  # of one list
BLOCK_BYTES = 4 * 2**20  # read at once while a tar is scanned
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
# Faults of a file itself; all others of a file system are of the way to it.
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
_LASTING_CODES = (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS)  # of an OSError; EINVAL: s3's answer 416

# path -> what is open, and its descriptor; reads name their place, so forks may share it
_open_files: OrderedDict[str, tuple[tuple[int, ...], int]] = OrderedDict()


@dataclass(frozen=True)
class Stamp:
    """Size and version of a file: another stamp, another content."""

    size: int  # bytes
    version: str  # time of the last change, or a server's entity tag


def is_local(place: str) -> bool:
    """Return True for a path, False for a URL."""
    return "://" not in place


def list_shards(place: str) -> list[str]:
    """Return the tar files that a source names: a folder of shards, a file, a glob, or a list in braces.

    `{00000..00009}` counts, `{a,b}` lists; several multiply. A folder gives the shards of its dataset.json, or else
    all its tar files. A list in braces names all its files, whether they are there or not.

    Raises: MissingError where nothing is there, UsageError for a list that is too long.
    """
    place = place.removeprefix("file://")
    if is_local(place) and Path(place).is_dir():
        return _of_folder(Path(place))
    found = [path for one in _expand(place) for path in _glob(one)]
    if not found:
        raise MissingError(f"data.sources: there is no shard {printable(place)}")
    return found


def stamp(place: str) -> Stamp:
    """Return the stamp of a file.

    Raises: MissingError where it is not there, PassingError where it may be the next time, UsageError for a place that
        cannot be read at all: a package is missing, or a server knows no ranges.
    """
    if web.is_web(place):
        answer = web.request(place, 0, 1)
        if answer.total is None:
            raise MissingError(f"{place}: the server does not tell its size")
        return Stamp(answer.total, answer.version)
    if is_local(place):
        with _local_faults(place):
            stat = os.stat(place)
        return Stamp(stat.st_size, str(stat.st_mtime_ns))
    files, path = _file_system(place)
    with _remote_faults(place):
        info = files.info(path)
    versions = (str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "last_modified") if name in info)
    return Stamp(int(info["size"]), next(versions, ""))


def read_range(place: str, start: int, size: int) -> bytes:
    """Return `size` bytes of a file from `start` on; fewer where it ends before.

    Raises: MissingError where it cannot be read; PassingError where that may be otherwise the next time.
    """
    if is_local(place):
        return _read_local(place, start, size)
    if web.is_web(place):
        return web.request(place, start, size).content
    files, path = _file_system(place)
    with _remote_faults(place):
        return bytes(files.cat_file(path, start=start, end=start + size))


def read_all(place: str, max_bytes: int) -> bytes:
    """Return the content of a small file.

    Raises: MissingError where it cannot be read or is larger; PassingError where that may be otherwise the next time.
    """
    found = stamp(place)
    if found.size > max_bytes:
        raise MissingError(f"{place} is larger than {max_bytes:,} bytes")
    return read_range(place, 0, found.size)


def open_stream(place: str, size: int) -> io.BufferedReader:
    """Return a file to seek and read in, of which large blocks are fetched at once. Raises: MissingError."""
    return io.BufferedReader(_Ranges(place, size), BLOCK_BYTES)


class _Ranges(io.RawIOBase):
    """A file as byte ranges."""

    def __init__(self, place: str, size: int) -> None:
        self.place, self.size, self.at = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.size - self.at))
        data = read_range(self.place, self.at, wanted) if wanted else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _of_folder(folder: Path) -> list[str]:
    if (folder / DATASET).is_file():
        names = [shard.name for shard in read_dataset(folder).shards]
    else:
        names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        raise MissingError(f"data.sources: {printable(folder)} holds no shards (.tar)")
    return [str(folder / name) for name in names]


def _expand(place: str) -> list[str]:
    found = _BRACES.search(place)
    if not found:
        return [place]
    rest = _expand(place[found.end() :])
    inner = list(_alternatives(found.group(1), place))
    if len(inner) * len(rest) > MOST_SHARDS:
        raise UsageError(f"data.sources: {printable(place)} names more than {MOST_SHARDS:,} shards")
    return [place[: found.start()] + one + more for one in inner for more in rest]


def _alternatives(inner: str, place: str) -> Iterator[str]:
    counted = _RANGE.fullmatch(inner)
    if not counted:
        yield from inner.split(",")
        return
    first, last = counted.groups()
    if not 0 <= int(last) - int(first) < MOST_SHARDS:
        raise UsageError(f"data.sources: {{{inner}}} in {printable(place)} does not count upwards, or too far")
    width = len(first) if first.startswith("0") else 0
    for number in range(int(first), int(last) + 1):
        yield f"{number:0{width}d}"


def _glob(place: str) -> list[str]:
    """Return the files of a pattern; a name without one is returned as it is."""
    if not set("*?[") & set(place.partition("?")[0] if web.is_web(place) else place):
        return [place]
    if is_local(place):
        return sorted(glob(place, recursive=True))
    if web.is_web(place):
        raise UsageError(f"data.sources: a web server lists no files; name those of {place} in braces")
    files, path = _file_system(place)
    try:
        return sorted(str(files.unstrip_protocol(one)) for one in files.glob(path))
    except (OSError, ValueError) as error:
        raise MissingError(f"data.sources: {place} cannot be listed: {reason(error)}") from None


def _read_local(place: str, start: int, size: int) -> bytes:
    with _local_faults(place):
        return os.pread(_descriptor(place), size, start)


@contextmanager
def _local_faults(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise MissingError(f"{printable(place)} cannot be read: {why}") from None


@contextmanager
def _remote_faults(place: str) -> Iterator[None]:
    """Raise faults of a file system that fsspec knows as PassingError, those of the file itself as MissingError."""
    from httpx2 import HTTPError

    try:
        yield
    except (OSError, ValueError) as error:
        kind = MissingError if _lasts(error) else PassingError
        raise kind(f"{printable(place)} cannot be read: {reason(error)}") from None
    except HTTPError as error:  # of the Hub's client
        said = str(error) or type(error).__name__
        raise PassingError(f"{printable(place)} cannot be read: {said}") from None


def _lasts(error: OSError | ValueError) -> bool:
    """Tell whether a fault is of the file itself, to which a server's refusals belong."""
    if isinstance(error, _LASTING) or str(error).startswith("Forbidden"):  # gcsfs's 403
        return True
    if error.errno in _LASTING_CODES:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)  # of the Hub
    return isinstance(status, int) and not web.may_pass(status)


def _descriptor(place: str) -> int:
    """Return the descriptor of a file as it is now: one that was replaced is opened again."""
    stat = os.stat(place)
    content = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    known, descriptor = _open_files.get(place, (None, -1))
    if known != content:
        if known is not None:
            os.close(_open_files.pop(place)[1])
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        _open_files[place] = content, descriptor
        if len(_open_files) > MOST_OPEN:
            os.close(_open_files.popitem(last=False)[1][1])
    _open_files.move_to_end(place)
    return descriptor


def _file_system(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(place)
    except ImportError as error:
        raise UsageError(f"data.sources: {place} needs another package: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UsageError(f"data.sources: {place} is no URL that can be read: {error}") from None
    return files, path

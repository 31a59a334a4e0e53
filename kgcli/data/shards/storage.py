"""Bytes of shards wherever they are: local files, http(s) servers, or any file system that fsspec knows."""

from __future__ import annotations

import io
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from kgcli.data.shards.layout import DATASET, read_dataset
from kgcli.errors import MissingError, PassingError, UsageError, printable, reason

MOST_OPEN = 128  # local files kept open at once
MOST_SHARDS = 10**6  # of one list
TRIES = 3  # of a request that a server may answer the next time
BLOCK_BYTES = 4 * 2**20  # read at once while a tar is scanned
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
# Faults of a file itself; all others of a file system are of the way to it.
LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
_BUSY = (429, 500, 502, 503, 504)  # a server's answers that may be another the next time

# path -> what is open, and its descriptor; reads name their place, so forks may share it
_open_files: OrderedDict[str, tuple[tuple[int, ...], int]] = OrderedDict()
_clients: dict[int, Any] = {}  # process -> its HTTP client: a connection is of one process


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


def stamp(place: str) -> Stamp | None:
    """Return the stamp of a file, None where it is not there or not reachable.

    Raises: UsageError for a place that cannot be read at all: a package is missing, or a server knows no ranges.
    """
    try:
        if is_local(place):
            stat = os.stat(place)
            return Stamp(stat.st_size, str(stat.st_mtime_ns))
        if _is_http(place):
            return _http_stamp(place)
        files, path = _file_system(place)
        info = files.info(path)
    except (OSError, ValueError, MissingError):
        return None
    versions = (str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "last_modified") if name in info)
    return Stamp(int(info["size"]), next(versions, ""))


def read_range(place: str, start: int, size: int) -> bytes:
    """Return `size` bytes of a file from `start` on; fewer where it ends before.

    Raises: MissingError where it cannot be read; PassingError where that may be otherwise the next time.
    """
    if is_local(place):
        return _read_local(place, start, size)
    if _is_http(place):
        return _request(place, start, size).content
    files, path = _file_system(place)
    try:
        return bytes(files.cat_file(path, start=start, end=start + size))
    except (OSError, ValueError) as error:
        kind = MissingError if isinstance(error, LASTING) else PassingError
        raise kind(f"{place} cannot be read: {reason(error)}") from None


def read_all(place: str, max_bytes: int) -> bytes:
    """Return the content of a small file. Raises: MissingError where it cannot be read or is larger."""
    found = stamp(place)
    if found is None or found.size > max_bytes:
        raise MissingError(f"{place} is " + ("not there" if found is None else f"larger than {max_bytes:,} bytes"))
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
    if not set("*?[") & set(place.partition("?")[0] if _is_http(place) else place):
        return [place]
    if is_local(place):
        return sorted(glob(place, recursive=True))
    if _is_http(place):
        raise UsageError(f"data.sources: a web server lists no files; name those of {place} in braces")
    files, path = _file_system(place)
    try:
        return sorted(str(files.unstrip_protocol(one)) for one in files.glob(path))
    except (OSError, ValueError) as error:
        raise MissingError(f"data.sources: {place} cannot be listed: {reason(error)}") from None


def _read_local(place: str, start: int, size: int) -> bytes:
    try:
        return os.pread(_descriptor(place), size, start)
    except (OSError, ValueError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise MissingError(f"{printable(place)} cannot be read: {why}") from None


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


def _is_http(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _http_stamp(url: str) -> Stamp:
    answer = _request(url, 0, 1)
    if answer.total is None:
        raise MissingError(f"{url}: the server does not tell its size")
    return Stamp(answer.total, answer.version)


@dataclass(frozen=True)
class _Answer:
    """A range of bytes that a server sent."""

    content: bytes
    total: int | None  # bytes of the whole file, if told
    version: str


def _request(url: str, start: int, size: int) -> _Answer:
    """Return a range of a file of a server; nothing is read of an answer that is another.

    Raises: MissingError where it cannot be read, PassingError where the server is busy or not reached, UsageError where
        it knows no ranges.
    """
    from httpx2 import HTTPError

    headers = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    said = ""
    for number in range(TRIES):
        if number:
            time.sleep(0.5 * number)
        try:
            with _client().stream("GET", url, headers=headers) as answer:
                if answer.status_code == 206:
                    return _range_of(answer, url, start, size)
                if answer.status_code == 200:
                    raise UsageError(f"{url}: the server does not serve ranges of bytes; download the shard")
                said = f"the server answers {answer.status_code}"
        except HTTPError as error:
            said = str(error) or type(error).__name__
            continue
        if answer.status_code not in _BUSY:
            raise MissingError(f"{url} cannot be read: {said}")
    raise PassingError(f"{url} cannot be read: {said}")


def _range_of(answer: Any, url: str, start: int, size: int) -> _Answer:
    """Return the bytes of an answer once its headers tell that they are those asked for. Raises: MissingError."""
    headers = answer.headers
    told = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    first, last = map(int, told.group(1, 2)) if told else (-1, -1)
    if told is None or first != start or not start <= last < start + size:
        raise MissingError(f"{url} cannot be read: the server answers with other bytes than those asked for")
    if headers.get("content-encoding", "identity") != "identity":
        raise MissingError(f"{url} cannot be read: the server compresses its bytes")
    content = _read_body(answer, last - first + 1)
    total = None if told.group(3) == "*" else int(told.group(3))
    return _Answer(content, total, headers.get("etag") or headers.get("last-modified") or "")


def _read_body(answer: Any, size: int) -> bytes:
    """Return at most so many bytes of an answer, whatever the server goes on to send."""
    content = bytearray()
    for block in answer.iter_raw():
        content += block
        if len(content) >= size:
            break
    return bytes(content[:size])


def _client() -> Any:
    import httpx2

    if os.getpid() not in _clients:
        _clients.clear()  # those of the process that this one was forked from
        _clients[os.getpid()] = httpx2.Client(follow_redirects=True, timeout=20)
    return _clients[os.getpid()]


def _file_system(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(place)
    except ImportError as error:
        raise UsageError(f"data.sources: {place} needs another package: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UsageError(f"data.sources: {place} is no URL that can be read: {error}") from None
    return files, path

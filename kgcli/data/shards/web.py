"""Byte ranges of files on http(s) servers."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Any

from kgcli.errors import MissingError, PassingError, UsageError

TRIES = 3  # of a request that a server may answer the next time
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)

_clients: dict[int, Any] = {}  # process -> its HTTP client: a connection is of one process


def is_web(place: str) -> bool:
    """Return True for the URL of a web server."""
    return place.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Answer:
    """A range of bytes that a server sent."""

    content: bytes
    total: int | None  # bytes of the whole file, if told
    version: str


def request(url: str, start: int, size: int) -> Answer:
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
        if not may_pass(answer.status_code):
            raise MissingError(f"{url} cannot be read: {said}")
    raise PassingError(f"{url} cannot be read: {said}")


def may_pass(status: int) -> bool:
    """Tell of a server's answer that refuses a file if it may be another the next time."""
    return status in (408, 425, 429) or (status >= 500 and status != 501)


def _range_of(answer: Any, url: str, start: int, size: int) -> Answer:
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
    return Answer(content, total, headers.get("etag") or headers.get("last-modified") or "")


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

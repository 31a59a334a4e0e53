"""A server on this machine that answers as the Hugging Face Hub does, with the faults that tests ask for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file has a sha256 as its ETag, as those in large-file storage
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)")


@dataclass
class FakeHub:
    """Repositories, what is wrong with them, and what was asked of the server."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> file -> content
    status: dict[str, int] = field(default_factory=dict)  # repository -> the status it refuses with
    stated: dict[str, str] = field(default_factory=dict)  # file -> a sha256 that is not that of its content
    missing: set[str] = field(default_factory=set)  # files whose last bytes the server does not have
    pause_after: int | None = None  # bytes of a large file after which it falls silent
    paused: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    url: str = ""

    def ranges(self, file: str) -> list[str | None]:
        """The ranges that were asked of a file's content."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(file)]

    def etag(self, file: str, content: bytes) -> str:
        """The ETag of a file: its sha256 where it is large, its git hash where it is small."""
        if len(content) >= LARGE:
            return self.stated.get(file, hashlib.sha256(content).hexdigest())
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run a hub on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def go_online(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, cache: Path) -> None:
    """Make a hub the only one that is asked, with a cache of its own."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # huggingface_hub has read the environment already.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, *_args):
        """Say nothing."""

    def _answer(self, *, with_body):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        resolved, listed = _RESOLVE.fullmatch(path), _TREE.match(path)
        repository = (resolved or listed)[1] if resolved or listed else ""
        if (status := self.hub.status.get(repository)) is not None:
            self._refuse(status, ERROR_CODES.get(status, ""))
        elif repository not in self.hub.files:
            self._refuse(404, "RepoNotFound")
        elif listed:
            self._list(repository, listed[2])
        elif resolved[3] not in self.hub.files[repository]:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(resolved[3], self.hub.files[repository][resolved[3]], with_body)

    def _refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, repository, kind):
        files = self.hub.files[repository]
        if kind == "revision":
            body = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        else:
            body = [
                {"type": "file", "path": name, "size": len(data), "oid": self.hub.etag(name, data)}
                for name, data in files.items()
            ]
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send(self, name, content, with_body):
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(span[1]) if span else 0
        there = content[:-10] if name in self.hub.missing else content
        self.send_response(206 if span else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.hub.etag(name, content)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(there) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(there) - 1}/{len(there)}")
        self.end_headers()
        if with_body:
            self._write(there[start:])

    def _write(self, body):
        pause = self.hub.pause_after
        if pause is None or len(body) <= pause:
            self.wfile.write(body)
            return
        self.wfile.write(body[:pause])
        self.wfile.flush()
        self.hub.paused.set()
        self.hub.released.wait(60)

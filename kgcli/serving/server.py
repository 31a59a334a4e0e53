"""The HTTP server: routes, limits and errors in the shape of OpenAI's API.

A request may wait for the model for minutes, so each has a thread; the number of threads, the bytes of a body, the
bodies that are read at one time and the requests that wait for the model are bounded, and with them memory.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import tempfile
import threading
import time
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kgcli.errors import BusyError, KgError, UsageError
from kgcli.reading import parse_json
from kgcli.serving.form import parse_form
from kgcli.serving.images import Call, Service, read_call, read_form, respond
from kgcli.serving.store import ImageStore
from kgcli.serving.worker import CancelledError, Job, Made, Worker
from kgcli.version import __version__

MAX_CONNECTIONS = 256  # at one time
READERS = 2  # bodies that are read and checked at one time
TIMEOUT = 30.0  # seconds without a byte from or to a client
BODY_SECONDS = 120.0  # for a whole body
DRAIN_SECONDS = 2.0  # for the body of a refused request
GOODBYE_SECONDS = 5.0  # for responses under way when the server stops
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Bounds of a server."""

    queue: int = 64  # requests that are served or wait for the model
    upload_bytes: int = 32 * 2**20  # of a body


class HttpError(KgError):
    """A refusal with an HTTP status and OpenAI's fields."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, object]:
        """The JSON of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Server(ThreadingHTTPServer):
    """A listening socket, the worker behind it and the images it has published.

    Example:
        server = Server(("127.0.0.1", 8000), Service(load()))
        server.serve_forever()  # until shutdown() is called from another thread or a signal handler's
        server.close()
    """

    daemon_threads = True
    request_queue_size = 128  # connections that the system accepts before a thread takes them

    def __init__(
        self,
        address: tuple[str, int],
        service: Service,
        *,
        limits: Limits | None = None,
        batch_size: int | str = 1,
    ) -> None:
        self.limits = limits or Limits()
        self.service = service
        self.worker = Worker(service.model, self.limits.queue, batch_size)
        self.readers = threading.BoundedSemaphore(READERS)
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._folder = tempfile.TemporaryDirectory(prefix="kg-serve-")
        self.store = ImageStore(Path(self._folder.name))
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, Handler)
        except OSError as error:
            self._folder.cleanup()
            self.worker.close()
            raise UsageError(f"cannot listen on {address[0]} port {address[1]}: {error.strerror or error}") from None

    @property
    def is_local(self) -> bool:
        """True if only this machine can connect."""
        return str(self.server_address[0]) in LOOPBACK

    @property
    def url(self) -> str:
        """The address to connect to."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it if there are too many."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection and count it out."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that broke."""
        _log.warning("a connection broke", exc_info=_log.isEnabledFor(logging.DEBUG))

    def close(self) -> None:
        """Stop the generation under way, answer those who wait, and remove all files; after serve_forever."""
        self.worker.close()
        until = time.monotonic() + GOODBYE_SECONDS
        for _ in range(MAX_CONNECTIONS):
            if not self._connections.acquire(timeout=max(0.0, until - time.monotonic())):
                break
        self.server_close()
        self._folder.cleanup()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"kgcli/{__version__}"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Answer with the model, its list, an image or the state of the server."""
        self._answer({"/v1/models": self._models, "/health": lambda: {"status": "ok"}})

    def do_POST(self) -> None:
        """Generate or edit images."""
        self._answer({"/v1/images/generations": self._generations, "/v1/images/edits": self._edits})

    def log_message(self, format: str, *args: Any) -> None:
        """Log a line of the access log."""
        _log.info("%s %s", self.address_string(), format % args)

    def handle_expect_100(self) -> bool:
        """Refuse a body that is too large before it is sent."""
        try:
            self._length()
        except HttpError as error:
            self._send_json(error.status, error.body)
            return False
        return super().handle_expect_100()

    def _answer(self, routes: dict[str, Any]) -> None:
        """Call a route and send what it returns, or its failure."""
        self.close_connection = True
        path = self.path.partition("?")[0].rstrip("/")
        try:
            self._check_sender()
            if self.command == "GET" and path.startswith("/images/"):
                self._send_image(path.removeprefix("/images/"))
                return
            if self.command == "GET" and path.startswith("/v1/models/"):
                self._send_json(200, self._model(path.removeprefix("/v1/models/")))
                return
            if path not in routes:
                raise HttpError(404, f"there is no {self.command} {path[:100]}", code="unknown_url")
            self._send_json(200, routes[path]())
        except KgError as error:
            failure = as_http(error)
            self._send_json(failure.status, failure.body)

    def _check_sender(self) -> None:
        """Refuse web pages of other sites, which a browser would let call a server on this machine.

        Raises: HttpError.
        """
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        foreign_name = self.server.is_local and bare.strip("[]") not in LOOPBACK
        if foreign_name or (origin is not None and origin.partition("://")[2] != host):
            raise HttpError(403, "this server does not answer web pages of other sites", code="forbidden_origin")

    def _models(self) -> dict[str, object]:
        return {"object": "list", "data": [self._model(self.server.service.model.folder.name)]}

    def _model(self, name: str) -> dict[str, object]:
        if name != self.server.service.model.folder.name:
            raise HttpError(404, f"the model {name[:100]} is not served here", code="model_not_found")
        return {"id": name, "object": "model", "created": 0, "owned_by": "kgcli"}

    def _generations(self) -> dict[str, object]:
        if self.headers.get_content_type() != "application/json":
            raise HttpError(415, "the body must be application/json", code="unsupported_media_type")
        with self.server.readers:
            values = parse_json(self._body().decode("utf-8", "replace"), name="the body", error=UsageError)
            if not isinstance(values, dict):
                raise UsageError("the body must be a JSON object")
            call = read_call(values)
            job = self.server.worker.submit(self.server.service.requests(call))
        return self._respond(call, self._wait(job))

    def _edits(self) -> dict[str, object]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kg-serve-")))
            with self.server.readers:
                parts = parse_form(self.headers.get("Content-Type", ""), self._body())
                call, uploads = read_form(parts, folder)
                del parts  # the bodies of all that wait would not fit in memory
                job = self.server.worker.submit(self.server.service.requests(call, uploads))
            made = self._wait(job)
        return self._respond(call, made)

    def _respond(self, call: Call, made: Made) -> dict[str, object]:
        return respond(self.server.service.encode(call, made), call, self._publish)

    def _publish(self, data: bytes, suffix: str) -> str:
        """Keep an image; return the URL it is found at."""
        return f"http://{self.headers.get('Host', '')}/images/{self.server.store.add(data, suffix)}"

    def _wait(self, job: Job) -> Made:
        """Wait for the images of a job; a client that goes away cancels it."""
        while True:
            try:
                return job.future.result(timeout=0.5)
            except FutureTimeout:
                if self._is_gone():
                    job.cancel()
            except FutureCancelled:
                raise CancelledError("the server is shutting down") from None

    def _is_gone(self) -> bool:
        """Return True if the client has closed its end."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _length(self) -> int:
        """Return the length of the body in bytes. Raises: HttpError."""
        given, most = self.headers.get("Content-Length", ""), self.server.limits.upload_bytes
        if not (given.isascii() and given.isdigit()):
            raise HttpError(411, "the request needs a Content-Length", code="length_required")
        if len(given) > 15 or int(given) > most:
            raise HttpError(413, f"the body is too large: the limit is {most:,} bytes", code="body_too_large")
        return int(given)

    def _body(self) -> bytes:
        """Read the body. Raises: HttpError."""
        left, until, blocks = self._length(), time.monotonic() + BODY_SECONDS, []
        while left:
            try:
                block = self.rfile.read1(min(left, 2**20))
            except TimeoutError:
                block = b""
            if not block or time.monotonic() > until:
                raise HttpError(408, "the body did not come in time, or was cut short", code="request_timeout")
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)

    def _send_image(self, name: str) -> None:
        data = self.server.store.read(name)
        if data is None:
            raise HttpError(404, "there is no such image, or it has made room for later ones", code="not_found")
        self._send(200, MEDIA_TYPES[Path(name).suffix], data)

    def _send_json(self, status: int, values: dict[str, object]) -> None:
        self._send(status, "application/json", json.dumps(values).encode())

    def _send(self, status: int, media_type: str, data: bytes) -> None:
        """Send a whole response; a client that has gone misses it."""
        self.close_connection = True
        try:
            self.send_response(HTTPStatus(status))
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Connection", "close")
            if status in (429, 503):
                self.send_header("Retry-After", "5")
            self.end_headers()
            self.wfile.write(data)
            if status >= 400:
                self._drain()
        except OSError:
            _log.info("%s has gone before the response", self.address_string())

    def _drain(self) -> None:
        """Read a little of what the client still sends: closing before would cost it the response."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(DRAIN_SECONDS)
        until = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < until and self.connection.recv(2**16):
            pass


def as_http(error: KgError) -> HttpError:
    """Return a failure as a response."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, BusyError):
        return HttpError(429, str(error), code="queue_full")
    if isinstance(error, CancelledError):
        return HttpError(503, str(error), code="service_unavailable")
    where = f"column {error.column}: " if error.column is not None else ""
    # Everything but the call was checked when the server started: these are faults of the call.
    status = 400 if error.exit_code in (2, 3) else 500
    param = "prompt" if error.column is not None else str(error).partition(":")[0]
    known = param if param in Call.model_fields or param in ("image", "mask") else None
    return HttpError(status, where + str(error), param=known, code="invalid_value" if status == 400 else None)

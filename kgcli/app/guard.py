"""The server's limits: no files in or out, no addresses fetched, no body larger than a request needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kgcli.app.limits import MAX_BODY

PREFIX = "/gradio_api"
# Parts of gradio that serve, take or fetch files. The page needs none: images travel inside its requests.
CLOSED = ("/upload", "/file=", "/file/", "/proxy=", "/stream/", "/deep_link", "/monitoring", "/component_server")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLargeError(Exception):
    """The body of a request is larger than `MAX_BODY`."""


class Guard:
    """ASGI middleware that closes gradio's file routes and bounds the size of a request."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope["path"]).removeprefix(PREFIX)
        if path.startswith(CLOSED):
            await _answer(send, 403, b"this page neither takes nor serves files")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await _answer(send, 413, b"the request is too large")
            return
        try:
            await self.app(scope, _Bounded(receive), send)
        except TooLargeError:
            await _answer(send, 413, b"the request is too large")


class _Bounded:
    """The body of a request without a stated length, cut off beyond `MAX_BODY`."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.size = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.size += len(message.get("body", b""))
        if self.size > MAX_BODY:
            raise TooLargeError
        return message


async def _answer(send: Send, code: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": text})

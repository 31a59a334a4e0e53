"""Laws of the server's limits, without a server: closed routes, and bodies that are too large."""

import asyncio

import pytest

from kgcli.app import guard
from kgcli.app.guard import Guard


def ask(path, *, headers=(), body=(b"",)):
    """Status of a request through the guard, and how much of its body arrived."""
    sent, chunks, arrived = [], list(body), []

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            arrived.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app)({"type": "http", "path": path, "headers": list(headers)}, receive, send))
    return sent[0]["status"], b"".join(arrived)


@pytest.mark.parametrize("prefix", ["", "/gradio_api"])
@pytest.mark.parametrize("path", ["/upload", "/upload_progress", "/file=/etc/passwd", "/file/etc", "/proxy=http://x/"])
def test_file_routes_are_closed(prefix, path):
    assert ask(prefix + path)[0] == 403


def test_what_the_page_needs_is_open():
    assert [ask(path)[0] for path in ("/", "/gradio_api/queue/join", "/config", "/assets/index.js")] == [200] * 4


def test_a_body_may_not_be_larger_than_said_or_allowed(monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY", 10)
    assert ask("/", headers=[(b"content-length", b"10")], body=[b"x" * 10]) == (200, b"x" * 10)
    assert ask("/", headers=[(b"content-length", b"11")])[0] == 413
    assert ask("/", headers=[(b"content-length", b"x")])[0] == 413
    assert ask("/", body=[b"x" * 6, b"x" * 6, b"x"])[0] == 413

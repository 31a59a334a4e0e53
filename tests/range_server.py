"""Web servers for tests: one of shards, whose files may vanish or be busy."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer


class _Server(BaseHTTPRequestHandler):
    """A web server with byte ranges over a folder."""

    def __init__(self, folder, gone, busy, *given):
        self.folder, self.gone, self.busy = folder, gone, busy
        super().__init__(*given)

    def do_GET(self):
        path = self.folder / self.path.lstrip("/")
        if path.name in self.busy:
            self.send_error(503)
            return
        if not path.is_file() or path.name in self.gone:
            self.send_error(404)
            return
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        part = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *given):
        pass


@contextmanager
def running(server):
    """Run a server in a thread; yields its URL."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def served(folder, gone=(), busy=()):
    """Serve a folder of four shards; yields the URL of all of them."""
    with running(HTTPServer(("127.0.0.1", 0), partial(_Server, folder, gone, busy))) as url:
        yield f"{url}/{{00000..00003}}.tar"

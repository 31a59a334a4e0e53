"""`kg app` as a process of its own, and its API by plain HTTP."""

import json
import os
import select
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = 240  # seconds that a busy machine may take to import torch
ANSWER = 300


@dataclass(frozen=True)
class Server:
    """A running page."""

    address: str
    pid: int

    @property
    def memory(self):
        """Resident memory of the server, in MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    def fetch(self, path, data=None, headers=None):
        """Status and body of an HTTP request."""
        request = urllib.request.Request(self.address + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def call(self, name, *values):
        """Return what an endpoint of the API answers; (False, text) for a refusal, else (True, value)."""
        body = json.dumps({"data": values}).encode()
        code, text = self.fetch(f"gradio_api/call/{name}", body, {"Content-Type": "application/json"})
        if code != 200:
            return False, text.decode()
        _, stream = self.fetch(f"gradio_api/call/{name}/{json.loads(text)['event_id']}")
        event, _, data = stream.decode().strip().rpartition("\n\n")[2].partition("\n")
        assert event in ("event: complete", "event: error"), stream
        return event == "event: complete", data.removeprefix("data: ")


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextmanager
def running(*args):
    """A page on a free port, by the command line; stopped at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kgcli", "app", "--no-open", "--port", str(free_port()), *map(str, args)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert select.select([process.stdout], [], [], START)[0], "the page did not start in time"
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=30)

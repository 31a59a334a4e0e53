"""Images that a response names by URL: a folder with the latest of them, under names that cannot be guessed."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path

MAX_BYTES = 256 * 2**20  # of all kept images; the oldest go first


class ImageStore:
    """Files of the latest images in a folder."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes, suffix: str) -> str:
        """Keep an image; return its name."""
        name = secrets.token_urlsafe(24) + suffix
        (self.folder / name).write_bytes(data)
        with self._lock:
            self._sizes[name] = len(data)
            while sum(self._sizes.values()) > self.max_bytes and len(self._sizes) > 1:
                oldest, _ = self._sizes.popitem(last=False)
                (self.folder / oldest).unlink(missing_ok=True)
        return name

    def read(self, name: str) -> bytes | None:
        """Return a kept image, None for any other name."""
        with self._lock:
            return (self.folder / name).read_bytes() if name in self._sizes else None

"""One loaded model that many visitors share: a request at a time, each with progress and a way to cancel it."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kgcli import engine
from kgcli.errors import KgError
from kgcli.inference.metadata import Metadata, encode_image
from kgcli.inference.output import slug
from kgcli.inference.request import Request

if TYPE_CHECKING:
    from PIL import Image

    from kgcli.inference.model import Model

Progress = Callable[[int, int], None]  # steps done, of how many


class CancelledError(KgError):
    """The visitor cancelled the request."""


@dataclass(frozen=True)
class Result:
    """One generated image: its file with metadata, and what made it."""

    image: Image.Image
    data: bytes  # PNG
    metadata: Metadata
    name: str  # of the file

    def tile(self, label: str = "") -> dict[str, Any]:
        """Return the image for the page, as JSON."""
        return {
            "src": f"data:image/png;base64,{base64.b64encode(self.data).decode()}",
            "name": self.name,
            "label": label,
            "seed": self.metadata["seed"],
            "prompt": self.metadata["prompt"],
            "steps": self.metadata["steps"],
            "guidance_scale": self.metadata["guidance_scale"],
            "scheduler": self.metadata["scheduler"],
            "size": f"{self.metadata['width']} x {self.metadata['height']}",
        }


class Studio:
    """The model of the page; `generate` runs one request at a time, and `cancel` ends those of a visitor."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.folder = model.folder
        self._lock = threading.Lock()  # the model is changed by adapters and cannot be shared within a step
        self._working: dict[str, set[threading.Event]] = {}  # of visitors with requests at work; set = cancelled

    def generate(
        self, requests: Sequence[Request], visitor: str = "", on_progress: Progress | None = None
    ) -> Iterator[Result]:
        """Generate the images of requests in order.

        Raises: CancelledError once `cancel` was called for the visitor; KgError.
        """
        cancelled = threading.Event()
        working = self._working.setdefault(visitor, set())
        working.add(cancelled)
        total = sum(request.sampling.num_inference_steps or 0 for request in requests)
        report = _Report(cancelled, total, on_progress)
        try:
            for request in requests:
                with self._lock:
                    report.check()
                    ((made, image),) = engine.generate(self.model, [request], report)
                yield self._result(made, image)
        finally:
            working.discard(cancelled)
            if not working:
                self._working.pop(visitor, None)

    def cancel(self, visitor: str) -> bool:
        """Cancel the requests of a visitor at their next step; return False if there are none."""
        events = list(self._working.get(visitor, ()))
        for event in events:
            event.set()
        return bool(events)

    def _result(self, request: Request, image: Image.Image) -> Result:
        metadata = self.model.describe(request)
        name = f"{slug(request.prompt)}-{request.seed}.png"
        return Result(image, encode_image(image, ".png", metadata), metadata, name)


class _Report:
    """Callback of each denoising step: report progress, or end a cancelled request."""

    def __init__(self, cancelled: threading.Event, total: int, on_progress: Progress | None) -> None:
        self.cancelled = cancelled
        self.total = total
        self.on_progress = on_progress
        self.done = 0

    def __call__(self, step: int) -> None:
        self.done += 1
        self.check()
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

    def check(self) -> None:
        """Raise: CancelledError."""
        if self.cancelled.is_set():
            raise CancelledError("cancelled; nothing more is generated")


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect the warnings that this thread logs, for the page's status line."""
    notes = _Notes()
    logger = logging.getLogger("kgcli")
    logger.addHandler(notes)
    try:
        yield notes.lines
    finally:
        logger.removeHandler(notes)


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a warning of the same thread."""
        if record.thread == self.thread:
            self.lines.append(record.getMessage())

"""One thread that generates for many callers, in the order they came, with a bounded queue."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from kgcli.errors import BusyError, KgError

if TYPE_CHECKING:
    from PIL import Image

    from kgcli.inference.model import Model
    from kgcli.inference.request import Request

Made = list[tuple["Request", "Image.Image"]]


class CancelledError(KgError):
    """A generation that was stopped: its caller has gone, or the worker is closing."""


class Job:
    """The requests of one caller and, in time, their images."""

    def __init__(self, requests: Sequence[Request], closing: threading.Event) -> None:
        self.requests = requests
        self.future: Future[Made] = Future()
        self._closing = closing
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop before the next denoising step."""
        self._cancelled.set()

    def check(self, step: int = 0) -> None:
        """Raise CancelledError if nobody waits for the images any more."""
        if self._closing.is_set():
            raise CancelledError("the server is shutting down")
        if self._cancelled.is_set():
            raise CancelledError("the caller has gone")


class Worker:
    """A model and the thread that alone uses it."""

    def __init__(self, model: Model, limit: int, batch_size: int | str = 1) -> None:
        """Args:
        limit: callers that are served or wait at one time; a further one is refused
        batch_size: images of one caller that are denoised together
        """
        self.model = model
        self.batch_size = batch_size
        self._slots = threading.BoundedSemaphore(limit)
        self._limit = limit
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kg-generate")

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queue requests.

        Raises: BusyError if the queue is full, CancelledError if the worker is closing.
        """
        job = Job(requests, self._closing)
        job.check()
        if not self._slots.acquire(blocking=False):
            raise BusyError(f"the queue is full: {self._limit} requests wait already; try again later")
        try:
            job.future = self._executor.submit(self._run, job)
        except RuntimeError:  # closed in between
            self._slots.release()
            raise CancelledError("the server is shutting down") from None
        job.future.add_done_callback(lambda _: self._slots.release())
        return job

    def close(self) -> None:
        """Stop the generation under way at its next step, and refuse those that wait."""
        self._closing.set()
        self._executor.shutdown(wait=True)

    def _run(self, job: Job) -> Made:
        from kgcli.inference.model import generate

        job.check()
        return list(generate(self.model, job.requests, job.check, self.batch_size))

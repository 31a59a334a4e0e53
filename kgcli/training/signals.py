"""Signals that stop a training run after the step under way."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from kgcli.data.signals import stop_signals


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collect the first signal that ends a process: the step under way is finished and saved; a second ends at once."""
    stopped: list[int] = []

    def note(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    try:
        old = {number: signal.signal(number, note) for number in stop_signals()}
    except ValueError:  # not the main thread: signals go elsewhere
        old = {}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

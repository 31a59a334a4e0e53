"""The signals that end a process, and worker processes that leave them to it."""

from __future__ import annotations

import signal


def stop_signals() -> list[int]:
    """Return the signals that end a process, a terminal's hang-up among them unless nohup has it ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]


def leave_signals_to_parent(worker: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the loop needs its loaders to finish the step."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)

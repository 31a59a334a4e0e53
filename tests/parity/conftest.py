"""Says after the run how near the golden numbers we are."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: the worst relative error of everything compared."""
    import golden

    if golden.WORST:
        name, error = max(golden.WORST.items(), key=lambda item: item[1])
        text = f"parity: {len(golden.WORST)} tensors, worst relative error {error:.1e} ({name})"
        terminalreporter.write_line(text)

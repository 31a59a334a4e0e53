"""Rows of the data that could not be read: counted by file, noted once each, and fatal when they are too many.

Rows that could not be read at the time, as of a busy server, are noted but do not count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from kgcli.data.sample import Fault
from kgcli.errors import MissingError, printable
from kgcli.files import output_errors
from kgcli.reading import parse_json, read_text
from kgcli.training.logging import say

SHOWN = 5  # faults of a file that are printed
MAX_BYTES = 256 * 2**20


class FaultLog:
    """The faults of a run, in a file of its folder: a line of JSON each.

    Args:
        path: of the file
        limit: number of faults, over all processes and without those that may pass, that a run goes on with
        writes: this process writes the file, and tells of the faults
    """

    def __init__(self, path: Path, limit: int, *, writes: bool = True) -> None:
        self.path = path
        self.limit = limit
        self.writes = writes
        self._seen: set[tuple[str, str, bool]] = set()
        self._by_file: Counter[str] = Counter()
        self._passing_by_file: Counter[str] = Counter()
        # Earlier versions wrote a file for each process.
        for written in sorted([*path.parent.glob(f"{path.stem}.[0-9]*{path.suffix}"), *path.parent.glob(path.name)]):
            for line in read_text(written, max_bytes=MAX_BYTES).splitlines():
                known = parse_json(line, name=str(written), error=MissingError)
                self._count(Fault(**known))

    def note(self, faults: Iterable[Fault]) -> None:
        """Add the faults of a step, those of all processes; each counts once.

        Raises: MissingError when there are more than the limit.
        """
        for fault in faults:
            if self._count(fault) and self.writes:
                self._write(fault)
        if self._by_file.total() > self.limit:
            raise MissingError(
                f"{self._by_file.total()} rows of the data cannot be read, data.max_faults allows {self.limit}: "
                f"{self.summary()}; {self.path} lists them"
            )

    def summary(self) -> str:
        """Return the number of faults by file, the worst first."""
        worst = self._by_file.most_common(SHOWN)
        files = ", ".join(f"{printable(file)}: {number}" for file, number in worst)
        return files + (f" and {len(self._by_file) - len(worst)} more files" if len(self._by_file) > len(worst) else "")

    def _write(self, fault: Fault) -> None:
        with output_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(fault)) + "\n")
        if self._counter(fault)[fault.file] <= SHOWN:
            say(f"skipped {printable(fault.file)} {printable(fault.row)}: {printable(fault.reason)}")

    def _count(self, fault: Fault) -> bool:
        """Return True for a fault that was not known."""
        known = fault.file, fault.row, fault.passing
        if known in self._seen:
            return False
        self._seen.add(known)
        self._counter(fault)[fault.file] += 1
        return True

    def _counter(self, fault: Fault) -> Counter[str]:
        return self._passing_by_file if fault.passing else self._by_file

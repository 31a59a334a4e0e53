"""The errors a user can cause or meet, one exit code each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class KgError(Exception):
    """Base of errors that a user can act on; printed as one line, exit code 1."""

    exit_code = 1

    def __init__(self, message: str, *, column: int | None = None, prompt: str | None = None) -> None:
        super().__init__(message)
        self.column = column
        self.prompt = prompt  # the text that `column` points into


class UsageError(KgError):
    """A flag or argument is wrong."""

    exit_code = 2


class PromptError(UsageError):
    """A prompt cannot be read; `column` (from 1) points at the fault."""


class ConfigError(UsageError):
    """A recipe or model configuration is wrong."""


class MissingError(KgError):
    """A model, recipe, data set or file is not there or is damaged."""

    exit_code = 3


class PassingError(MissingError):
    """A file cannot be reached now: a fault of its server or network, which may pass."""


class ImageError(MissingError):
    """An image is missing or cannot be used."""


class IncompatibleError(KgError):
    """A version, device or set of weights does not fit."""

    exit_code = 4


class NotFiniteError(KgError):
    """A generated image holds NaN or infinity."""


class OutOfMemoryError(KgError):
    """Out of memory; the message names the flag to try."""

    exit_code = 5


class PartialBatchError(KgError):
    """Some items of a batch failed; the others are written."""

    exit_code = 6


class OutputError(KgError):
    """A file or folder cannot be written where it should go."""


class BusyError(KgError):
    """Another process is at work in the same folder."""


class SeveralErrors(KgError):
    """Several faults of one call, listed together; the exit code is that of the first."""

    def __init__(self, errors: Sequence[KgError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)
        self.exit_code = errors[0].exit_code

    def __reduce__(self) -> tuple[type[SeveralErrors], tuple[tuple[KgError, ...]]]:
        """Send the errors, not their joined text, from one process to another."""
        return type(self), (self.errors,)


class Checks:
    """Context of checks whose faults are raised together, in order.

    Example:
        >>> with Checks() as check:
        ...     number = check(int, "3")
        >>> number
        3
    """

    def __init__(self) -> None:
        self.faults: list[KgError] = []

    def __enter__(self) -> Checks:
        return self

    def __call__(self, check: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """Run a check and return its result; note its faults and return None."""
        try:
            return check(*args, **options)
        except SeveralErrors as error:
            self.faults += error.errors
        except KgError as error:
            self.faults.append(error)
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            raise_all(self.faults)


def raise_all(faults: Sequence[KgError]) -> None:
    """Raise the faults: nothing for none, a single one as it is, several as `SeveralErrors`."""
    if len(faults) > 1:
        raise SeveralErrors(faults)
    if faults:
        raise faults[0]


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and start again",
    errno.EDQUOT: "the disk quota is used up; free some space and start again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EFBIG: "the file would be larger than the file system or the limit of this process allows",
    errno.ENAMETOOLONG: "the name is too long; file systems take 255 bytes",
}


def reason(error: OSError | ValueError) -> str:
    """Return why a file operation failed and, where possible, what to do about it."""
    if isinstance(error, OSError):
        return _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return str(error)  # a name with a NUL or with characters that the file system cannot hold


def printable(path: Path | str) -> str:
    """Return a path for a message: bytes that are not UTF-8 and control characters are escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair
        text = str(path)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

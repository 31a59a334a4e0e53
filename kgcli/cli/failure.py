"""Failures as one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
import unicodedata

import typer

from kgcli.errors import KgError, SeveralErrors, UsageError, printable, reason

INTERRUPTED = 130
PROMPT_WINDOW = 72  # columns of the prompt that are shown about a fault


class CommandError(UsageError):
    """Arguments that a command does not take; `command` is the one whose help lists those it takes."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


def exit_code_of(error: BaseException) -> int:
    """Print an error on stderr and return its exit code.

    KG_DEBUG=1 shows the traceback as well.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if os.environ.get("KG_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, typer.TyperException):  # raised in a command's body
        _print_error(error.format_message().rstrip("."))
        return error.exit_code
    if isinstance(error, typer.Abort):
        return 1
    if isinstance(error, KgError):
        for one in error.errors if isinstance(error, SeveralErrors) else (error,):
            show(one)
        if isinstance(error, CommandError):
            print(f"       {error.command} --help lists its arguments and options", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:  # a disk that is full or read-only, wherever it was met
        _print_error(f"{printable(str(error.filename or 'a file'))} cannot be read or written: {reason(error)}")
        return 1
    text = " ".join(str(error).split())
    _print_error(f"unexpected {type(error).__name__}{': ' if text else ''}{text[:500]} (KG_DEBUG=1 shows where)")
    return 1


def show(error: KgError, prefix: str = "") -> None:
    """Print an error, with the prompt and a caret if it has a column."""
    where = f"column {error.column}: " if error.column is not None else ""
    _print_error(prefix + where + str(error))
    if error.prompt is not None and error.column is not None:
        for line in point_at(error.prompt, error.column):
            print(f"  {line}", file=sys.stderr)


def point_at(prompt: str, column: int) -> tuple[str, str]:
    """Return the prompt around a column (from 1) on one line, and a line with a caret below it."""
    printable = "".join(char if char.isprintable() else " " for char in prompt)
    start = max(0, column - 1 - PROMPT_WINDOW // 2)
    window = printable[start : start + PROMPT_WINDOW]
    before = printable[start : column - 1]
    left, right = ("..." if start else ""), ("..." if start + PROMPT_WINDOW < len(printable) else "")
    return left + window + right, " " * (len(left) + sum(map(_width, before))) + "^"


def _width(character: str) -> int:
    """Return the terminal columns of a character."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _print_error(message: str) -> None:
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    label = typer.style("error:", fg=typer.colors.RED, bold=True) if coloured else "error:"
    printable = "".join(char if char.isprintable() else " " for char in message)
    encoding = sys.stderr.encoding or "utf-8"
    print(label, printable.encode(encoding, "replace").decode(encoding), file=sys.stderr)

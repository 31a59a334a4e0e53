"""The page's status line, as escaped HTML."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kgcli.errors import KgError, printable

MAX_WINDOW = 72  # characters of a prompt that are shown about a fault


def status(text: str, notes: Sequence[str] = ()) -> str:
    """Return a status line as HTML."""
    lines = Markup("").join(Markup("<p>note: {}</p>").format(note) for note in dict.fromkeys(notes))
    return str(Markup("<p>{}</p>{}").format(text, lines))


def error_status(error: KgError) -> str:
    """Return an error as HTML, with the prompt and a caret if it has a column."""
    pointed = Markup("")
    if error.prompt is not None and error.column is not None:
        start = max(0, error.column - 1 - MAX_WINDOW // 2)
        window = printable(error.prompt[start : start + MAX_WINDOW])
        pointed = Markup("<pre>{}\n{}</pre>").format(window, " " * (error.column - 1 - start) + "^")
    return str(Markup('<p class="kg-error">error: {}</p>').format(one_line(error)) + pointed)


def one_line(error: KgError) -> str:
    """Return the message of an error with its column."""
    where = f"column {error.column}: " if error.column is not None else ""
    return where + " ".join(str(error).split())

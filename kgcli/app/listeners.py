"""Functions that gradio calls: listeners of the page's buttons, and answers of its API, around `kgcli.app.handlers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from kgcli.app.status import error_status, status
from kgcli.errors import KgError
from kgcli.reading import parse_json

if TYPE_CHECKING:
    from kgcli.app.handlers import Handlers
    from kgcli.app.studio import Progress

_BAR = gr.Progress()  # gradio's way to ask for one


def on_button(handler: Callable[..., Iterator[Any]], names: list[str]) -> Callable[..., Iterator[Any]]:
    """Return the listener of a button: values of the named fields to what the handler yields."""

    def act(request: gr.Request, bar: gr.Progress = _BAR, *values: Any) -> Iterator[Any]:
        for shown, line in handler(dict(zip(names, values, strict=True)), _visitor(request), _progress(bar)):
            yield (gr.skip() if shown is None else shown), line

    return act


def on_compare(handlers: Handlers, names: list[str], side: list[str]) -> Callable[..., Iterator[Any]]:
    """Return the listener of the comparison: values of the fields, then of both sides, to what it yields."""

    def act(request: gr.Request, bar: gr.Progress = _BAR, *values: Any) -> Iterator[Any]:
        count = len(names)
        fields = dict(zip(names, values[:count], strict=True))
        sides = [
            dict(zip(side, part, strict=True))
            for part in (values[count : count + len(side)], values[count + len(side) :])
        ]
        for shown, line in handlers.compare(fields, sides, _visitor(request), _progress(bar)):
            yield (gr.skip() if shown is None else shown), line

    return act


def on_cancel(handlers: Handlers) -> Callable[[gr.Request], str]:
    """Return the listener that cancels what a visitor has at work."""

    def act(request: gr.Request) -> str:
        return handlers.cancel(_visitor(request))

    return act


def on_replay(handlers: Handlers, names: list[str]) -> Callable[..., Any]:
    """Return the listener of a dropped image: a status line, then the values of the named fields."""

    def act(dropped: Any, *trays: Any) -> Any:
        if not dropped:
            return [gr.skip()] * (len(names) + 1)
        try:
            restored = handlers.restore(dropped[0], trays)
        except KgError as error:
            return [error_status(error), *[gr.skip()] * len(names)]
        line = status("restored; press Generate to make it again", restored.notes)
        return [line, *(restored.values.get(name, gr.skip()) for name in names)]

    return act


def answer(handlers: Handlers, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the images of an API request; raise: gr.Error with the usual line."""
    try:
        return handlers.images_of(fields)
    except KgError as error:
        raise gr.Error(str(error), print_exception=False) from None


def read_settings(text: str) -> dict[str, Any]:
    """Return the settings of an API request; raise: gr.Error with the usual line."""
    try:
        values = parse_json(text or "{}", name="settings")
    except KgError as error:
        raise gr.Error(str(error), print_exception=False) from None
    if not isinstance(values, dict):
        raise gr.Error("settings is not a JSON object", print_exception=False)
    return {str(name): value for name, value in values.items()}


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash or "")


def _progress(bar: gr.Progress) -> Progress:
    return lambda done, total: bar((done, total), desc="generating", unit="steps")

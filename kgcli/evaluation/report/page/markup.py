"""HTML built from parts: whatever is not marked as HTML is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = ("img", "input", "meta", "line", "circle", "rect", "br")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | int | float | bool | None) -> Html:
    """An element. Attributes: `class_` is class, `data_x` is data-x; True stands alone, False and None are left out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>" if name in ("img", "input", "meta", "br") else f"<{name}{shown}/>")
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(part if isinstance(part, Html) else escape(part) for part in parts))


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'

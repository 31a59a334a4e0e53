"""The page's HTML: jinja2 templates beside this file; whatever is not HTML already is escaped."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

MACROS = "macros.html"


def html(macro: str, /, **values: Any) -> Markup:
    """Return what a macro of `macros.html` makes of values."""
    return Markup(getattr(_environment().get_template(MACROS).module, macro)(**values))


def page(**values: Any) -> str:
    """Return the whole page."""
    return _environment().get_template("page.html").render(**values)


def asset(name: str) -> str:
    """Return a file of this folder."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

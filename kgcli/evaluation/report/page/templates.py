"""The page's HTML: jinja2 templates beside this file, with autoescape."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

MACROS = "macros.html"


def html(macro: str, /, **values: Any) -> Markup:
    """Render a macro of `macros.html`."""
    return Markup(getattr(_environment().get_template(MACROS).module, macro)(**values))


def page(**values: Any) -> str:
    """Render the whole page."""
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

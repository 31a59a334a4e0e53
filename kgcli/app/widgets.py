"""The page's own components: a tray of images, a gallery of results, and the shipped examples.

Each is a `gr.HTML` whose value is JSON; its JavaScript lies in `static/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from kgcli.app.examples import example_item
from kgcli.app.limits import MAX_BYTES
from kgcli.world.examples import EXAMPLES

STATIC = Path(__file__).parent / "static"
MAX_SHOWN = 48  # images in a gallery
TEMPLATE = "<div></div>"  # its content is made by the script


def script(name: str) -> str:
    """Return a script or style sheet of the page."""
    return (STATIC / name).read_text("utf-8")


def make_tray(
    tray: str,
    *,
    most: int,
    title: str,
    hint: str,
    prompt: str = "",
    weights: bool = False,
    crops: bool = True,
    compact: bool = False,
) -> gr.HTML:
    """Return a tray: images added by drop, paste or choice, as a list of uploads (see `kgcli.app.uploads`).

    Args:
        tray: its name, by which the page's other parts add images to it
        most: number of images it holds; a further one replaces the only one, or is left out
        prompt: CSS selector of the text box into which the number of an image is written
        weights, crops: whether an image can be weighed and cropped
    """
    return _widget(
        "tray.js",
        [],
        f"kg-tray-{tray}",
        tray=tray,
        most=most,
        title=title,
        hint=hint,
        prompt=prompt,
        weights=weights,
        crops=crops,
        compact=compact,
        max_bytes=MAX_BYTES,
    )


def make_gallery(hint: str) -> gr.HTML:
    """Return the gallery of generated images; its value is `{run, items}`, with tiles of `kgcli.app.studio.Result`."""
    # Tray, its tab, label and title of the buttons below an image.
    actions = [
        ["main", "Generate", "Use", "Use as an image of the prompt"],
        ["edit", "Edit", "Edit", "Edit this image"],
    ]
    return _widget("gallery.js", None, "kg-results", hint=hint, most=MAX_SHOWN, actions=actions)


def make_examples(tray: str) -> gr.HTML:
    """Return the example images that ship with the package; a click adds one to a tray."""
    return _widget("examples.js", [example_item(name) for name in EXAMPLES], "kg-examples", tray=tray)


def _widget(source: str, value: Any, elem_id: str, **props: Any) -> gr.HTML:
    # Not subclasses: gradio writes a .pyi file beside the source of each.
    return gr.HTML(
        value, html_template=TEMPLATE, js_on_load=script(source), apply_default_css=False, elem_id=elem_id, **props
    )

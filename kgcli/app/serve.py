"""The page on 127.0.0.1, with a bounded queue, until it is stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware

from kgcli.app.guard import Guard
from kgcli.app.limits import MAX_QUEUE, MAX_SESSIONS
from kgcli.app.widgets import script
from kgcli.errors import UsageError

HOST = "127.0.0.1"  # this machine only, never a public tunnel
FONTS = ("system-ui", "sans-serif")  # gradio's own are fetched from the web


@contextmanager
def serving(blocks: gr.Blocks, port: int) -> Iterator[str]:
    """Serve a page in the background within a context; gives its address.

    Raises: UsageError if the port is taken.
    """
    blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=4)
    folder = tempfile.mkdtemp(prefix="kgcli-app-")  # gradio insists on one; nothing is written to it
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield _launch(blocks, port)
    finally:
        blocks.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def _launch(blocks: gr.Blocks, port: int) -> str:
    """Start the server; return its address. Raises: UsageError if the port is taken."""
    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            allowed_paths=[],
            blocked_paths=["/"],
            max_file_size=1,
            state_session_capacity=MAX_SESSIONS,
            footer_links=["api"],
            theme=gr.themes.Soft(font=FONTS, font_mono=("ui-monospace", "monospace"), primary_hue="blue"),
            css=script("page.css"),
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError:  # gradio's own words for a port that it cannot bind
        raise UsageError(f"port {port} is taken; give another with --port") from None
    return str(address)

"""The page on 127.0.0.1, with a bounded queue, until it is stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from kgcli.app.guard import Guard
from kgcli.app.handlers import Handlers
from kgcli.app.page import Page
from kgcli.app.settings import Offer
from kgcli.app.studio import Studio
from kgcli.app.widgets import script
from kgcli.errors import UsageError

if TYPE_CHECKING:
    from kgcli.inference.model import Model

HOST = "127.0.0.1"  # this machine only, never a public tunnel
MAX_QUEUE = 100  # requests that wait; more are told that the queue is full
MAX_SESSIONS = 200  # open pages whose state is kept
FONTS = ("system-ui", "sans-serif")  # gradio's own are fetched from the web


@contextmanager
def serving(model: Model, offer: Offer, port: int, quantize: str = "none") -> Iterator[str]:
    """Serve the page in the background within a context; gives its address.

    Raises: UsageError if the port is taken.
    """
    blocks = Page(Handlers(Studio(model, quantize), offer)).build()
    blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=4)
    folder = tempfile.mkdtemp(prefix="kgcli-app-")  # gradio insists on one; nothing is written to it
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
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
        yield address
    except OSError:
        raise UsageError(f"port {port} is taken; give another with --port") from None
    finally:
        blocks.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before

"""`kg app`: the page in the browser, on this machine only."""

from __future__ import annotations

import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DECODER, DEVICE, DTYPE, MODEL, OFFLINE, QUANTIZE, flag
from kgcli.cli.parsing.command import App
from kgcli.errors import UsageError
from kgcli.runtime import check_quantize
from kgcli.weights.folder import open_model

if TYPE_CHECKING:
    from kgcli.app.settings import Offer
    from kgcli.inference.model import Model

app = App()
PORT = 7860


@app.command()
def window(
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.", min=1, max=65535)] = PORT,
    model: Annotated[str | None, MODEL] = None,
    decoder: Annotated[str | None, DECODER] = None,
    lora: Annotated[
        list[str] | None, flag("--lora", metavar="FILE", help="LoRA that the page offers; repeatable, default: none.")
    ] = None,
    controlnet_model: Annotated[
        list[str] | None,
        flag(
            "--controlnet-model",
            metavar="KIND=MODEL",
            help="ControlNet that the page offers, folder or Hub id; repeatable, default: none.",
        ),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    offload: Annotated[
        str, typer.Option("--offload", help="Weights to keep off the GPU: none, model or sequential.")
    ] = "none",
    quantize: Annotated[str, QUANTIZE] = "none",
    offline: Annotated[bool, OFFLINE] = False,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page in the browser to generate, edit and compare images; stop it with Ctrl+C.

    It listens on 127.0.0.1 only, and its prompts can name uploaded images only, never a file of this machine. Needs
    the extra `app`: pip install 'kgcli[app]'.

    Example: kg app --port 7861 --lora style.safetensors
    """
    set_up_logs(offline=offline)
    if find_spec("gradio") is None:
        raise UsageError("kg app needs gradio, which is not installed: pip install 'kgcli[app]'")
    check_quantize(quantize, device)
    folder = open_model(model, decoder, offline)
    from kgcli.app.settings import read_offer

    offer = read_offer(folder, [str(Path(one).expanduser()) for one in lora or []], controlnet_model or [])
    print("loading the model", file=sys.stderr)
    import kgcli.engine as engine

    loaded = engine.load(folder, device=device, dtype=dtype, offload=offload, quantize=quantize, offline=offline)
    _serve(loaded, offer, port, open_browser)


def _serve(model: Model, offer: Offer, port: int, open_browser: bool) -> None:
    """Show the page until Ctrl+C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from kgcli.app.handlers import Handlers
    from kgcli.app.page import Page
    from kgcli.app.serve import serving
    from kgcli.app.studio import Studio

    page = Page(Handlers(Studio(model), offer))
    with serving(page.build(), port) as address:
        print(address, flush=True)
        print("press Ctrl+C to stop", file=sys.stderr)
        if open_browser:
            typer.launch(address)
        threading.Event().wait()

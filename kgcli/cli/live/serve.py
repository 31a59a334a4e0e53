"""`kg serve`: a loaded model behind HTTP, with OpenAI's image routes."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import typer

from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, flag, takes_flags
from kgcli.cli.plan import open_session
from kgcli.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)
NOT_OF_A_SERVER = (
    *("out", "num_images", "seed", "negative_prompt", "images", "batch", "from_", "allow_download"),
    *("json", "no_metadata", "overwrite", "skip_existing"),
)


@takes_flags(GenerateFlags, without=NOT_OF_A_SERVER)
def serve(
    host: Annotated[str, flag("--host", help="Address to listen on; default: 127.0.0.1, this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, flag("--port", help="Port to listen on; 0 = any free one; default: 8000.")] = 8000,
    queue: Annotated[int, flag("--queue", help="Requests that may wait, 1 to 200; default: 64.")] = 64,
    max_upload: Annotated[int, flag("--max-upload", help="Largest request body, MiB, 1 to 256; default: 32.")] = 32,
    *,
    flags: GenerateFlags,
) -> None:
    """Serve a model over HTTP: /v1/images/generations, /v1/images/edits and /v1/models, as OpenAI's API.

    Images are generated one request after the other. Prompts may only name uploaded images (<image:-1>): no file of
    this machine is read. There is no log-in: other addresses than 127.0.0.1 are for trusted networks. Ctrl-C stops.

    Example: kg serve --port 8000
    """
    from kgcli.cli.generate import load

    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    for name, value, most in (("--port", port, 65535), ("--queue", queue, 200), ("--max-upload", max_upload, 256)):
        if not (name != "--port") <= value <= most:
            raise UsageError(f"{name} is {value}; it must be from {int(name != '--port')} to {most}")
    plan = open_session(flags)
    model = load(plan, flags)  # torch loads here, after all checks
    from kgcli.serving.images import Service
    from kgcli.serving.server import Limits, Server

    service = Service(model, flags.sampling, plan.adapters)
    limits = Limits(queue=queue, upload_bytes=max_upload * 2**20)
    server = Server((host, port), service, limits=limits, batch_size=flags.batch_size)
    for number in (signal.SIGINT, signal.SIGTERM):
        # shutdown() waits for serve_forever, which this very thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    if not flags.quiet:
        print(f"serving {plan.model.name} on {server.url}; Ctrl-C stops", file=sys.stderr, flush=True)
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.close()
    if not flags.quiet:
        print("stopped", file=sys.stderr)


app.command()(serve)

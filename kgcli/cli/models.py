"""`kg models`: list, download and verify published weights; show the sizes of a model's parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli import complete
from kgcli.cli.command import App
from kgcli.cli.options import OFFLINE, QUIET, flag

FULL_SIZE = "kosmosg"  # name of the published sizes
WIDTH = 52  # columns of the longest part's name

app = App()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def models() -> None:
    """List, download and verify published weights; show what a model knows and its sizes."""


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per source.")] = False) -> None:
    """List the supported published weights and their location on this machine.

    Example: kg models ls --json
    """
    from kgcli.weights.published.catalogue import sources_text

    print(sources_text(as_json=as_json), end="")


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="kosmosg or kosmos-2; see kg models ls.", autocompletion=complete.published)
    ],
    to: Annotated[
        Path | None,
        flag("--to", metavar="FOLDER", help="Model folder to write; default: in the cache, found by --model NAME."),
    ] = None,
    revision: Annotated[
        str | None,
        flag("--revision", metavar="NAME", help="Branch, tag or commit of the repository; default: the listed one."),
    ] = None,
    source: Annotated[
        str | None,
        flag("--from", metavar="SOURCE", help="Local file or folder, or a Hub repository; default: the first listed."),
    ] = None,
    dtype: Annotated[
        str | None,
        flag(
            "--dtype",
            metavar="DTYPE",
            help="Precision to write: float16, bfloat16 or float32; default: that of the file.",
        ),
    ] = None,
    accept: Annotated[bool, flag("--accept", help="Accept an unofficial mirror, whatever its licence.")] = False,
    sha256: Annotated[
        str | None, flag("--sha256", metavar="HEX", help="Expected hash of the file; default: the listed one.")
    ] = None,
    offline: Annotated[bool, OFFLINE] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Download published weights, check their sha256 and convert them; an interrupted download is resumed.

    Example: kg models pull kosmos-2 --dtype float16
    """
    from kgcli.cli.logs import set_up_logs

    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.weights.published import pull as pulling

    options = pulling.PullOptions(
        to=to, revision=revision, source=source, dtype=dtype, accept=accept, sha256=sha256, offline=offline
    )
    print(pulling.pull(name, options))


@app.command()
def verify(
    model: Annotated[
        str, typer.Argument(help="Model folder, or the name of a pulled model.", autocompletion=complete.models)
    ],
) -> None:
    """Check that a model folder is complete, matches its config.json, and has its recorded sha256.

    Example: kg models verify kosmosg
    """
    from kgcli.weights.published import record

    for line in record.verify(model):
        print(line)


@app.command()
def show(
    model: Annotated[
        str | None, typer.Argument(help=f"Model folder, Hub id or {FULL_SIZE}; default: the shipped nano model.")
    ] = None,
    full_size: Annotated[bool, typer.Option("--full-size", help="Show the published model's sizes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the parameter count of each part beside the paper's; no weights are read."""
    from kgcli.config import ModelConfig
    from kgcli.errors import UsageError
    from kgcli.weights.config import read_model_config
    from kgcli.weights.folder import open_model
    from kgcli.weights.shipped import DEFAULT_MODEL

    if full_size and model is not None:
        raise UsageError(f"--full-size shows the published sizes, not those of {model}; give one of them")
    folder = DEFAULT_MODEL if model is None else Path(model).expanduser()
    if full_size or (model == FULL_SIZE and not folder.is_dir()):
        name, cfg = FULL_SIZE, ModelConfig()
    elif folder.is_dir():
        name, cfg = "nano" if model is None else folder.name, read_model_config(folder)
    else:
        name, cfg = str(model), open_model(model, with_decoder=False, with_aligner=False).cfg
    from kgcli.weights.sizes import count_parameters  # torch loads here, without a device

    rows = count_parameters(cfg)
    if as_json:
        print(json.dumps({"model": name, "parameters": {part.name: number for part, number in rows}}))
        return
    print(f"{'parameters':{WIDTH}} {name:>14} {'paper':>7}")
    for part, number in rows:
        print(f"{part.name:{WIDTH}} {number:14,} {part.paper:>7}".rstrip())

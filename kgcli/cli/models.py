"""`kg models`: published weights listed, fetched and verified, and how large a model's parts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

FULL_SIZE = "kosmosg"  # a name for the published sizes
WIDTH = 52  # columns of the longest part's name

app = typer.Typer(rich_markup_mode=None, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.callback()
def models() -> None:
    """List, fetch and verify published weights; show the sizes of a model."""


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="One JSON object per source.")] = False) -> None:
    """List the published weights that can be used, and where they are on this machine."""
    from kgcli.weights.published.catalogue import sources_text

    print(sources_text(as_json=as_json), end="")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="kosmosg or kosmos-2; `kg models ls` lists them.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Model folder to write; default: where --model NAME finds it.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="A file or folder that you have, or another repository.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float16, bfloat16, float32; default: the file's.")
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Use an unofficial mirror, whatever its licence.")] = False,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="The file's hash, where it is another than the listed one.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the local cache alone.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only on stderr.")] = False,
) -> None:
    """Fetch published weights, check their sha256 and make a model folder of them; a broken download is resumed.

    Example: kg models pull kosmos-2 --dtype float16
    """
    from kgcli.cli.logs import set_up_logs

    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.weights.published import pull as pulling

    order = pulling.Order(
        to=to, revision=revision, source=source, dtype=dtype, accept=accept, sha256=sha256, offline=offline
    )
    print(pulling.pull(name, order))


@app.command()
def verify(model: Annotated[str, typer.Argument(help="Model folder, or the name of a pulled model.")]) -> None:
    """Check that a model folder is whole, fits its config.json, and has the sha256 it was written with."""
    from kgcli.weights.published import record

    for line in record.verify(model):
        print(line)


@app.command()
def show(
    model: Annotated[
        str | None, typer.Argument(help=f"Model folder, Hub id or {FULL_SIZE}; default: the one shipped.")
    ] = None,
    full_size: Annotated[bool, typer.Option("--full-size", help="The published model's sizes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Parameters of each part beside the paper's figures; no weights are read."""
    from kgcli.config import ModelConfig, read_model_config
    from kgcli.errors import UsageError
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
    from kgcli.weights.sizes import count_parameters  # torch loads here, on no device at all

    rows = count_parameters(cfg)
    if as_json:
        print(json.dumps({"model": name, "parameters": {part.name: number for part, number in rows}}))
        return
    print(f"{'parameters':{WIDTH}} {name:>14} {'paper':>7}")
    for part, number in rows:
        print(f"{part.name:{WIDTH}} {number:14,} {part.paper:>7}".rstrip())

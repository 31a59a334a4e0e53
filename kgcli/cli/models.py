"""`kg models show`: how large a model's parts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

FULL_SIZE = "kosmosg"  # a name for the published sizes
WIDTH = 52  # columns of the longest part's name

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def models() -> None:
    """Show how large a model's parts are."""


@app.command()
def show(
    model: Annotated[
        str | None, typer.Argument(help=f"Model folder, Hub id or {FULL_SIZE}; default: the one shipped.")
    ] = None,
    full_size: Annotated[bool, typer.Option("--full-size", help="The published model's sizes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
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
        name, cfg = str(model), open_model(model).cfg
    from kgcli.weights.sizes import count_parameters  # torch loads here, on no device at all

    rows = count_parameters(cfg)
    if as_json:
        print(json.dumps({"model": name, "parameters": {part.name: number for part, number in rows}}))
        return
    print(f"{'parameters':{WIDTH}} {name:>14} {'paper':>7}")
    for part, number in rows:
        print(f"{part.name:{WIDTH}} {number:14,} {part.paper:>7}".rstrip())

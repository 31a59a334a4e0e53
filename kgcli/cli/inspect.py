"""`kg inspect`: the metadata of an image, or the configuration of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kgcli.cli.parsing.command import App

app = App()


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Image file or model folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the metadata of an image, or the configuration of a model folder.

    Example: kg inspect out.png
    """
    values = _describe_model(path) if path.is_dir() else _describe_image(path)
    if as_json:
        print(json.dumps(values))
        return
    for name, value in _flatten(values):
        print(f"{name}: {value}")


def _describe_image(path: Path) -> dict[str, Any]:
    from kgcli.errors import MissingError
    from kgcli.inference.metadata import read_metadata, read_parameters

    try:
        return read_metadata(path)
    except MissingError:
        parameters = read_parameters(path)  # another program's, or ours without the file beside it
        if parameters is None:
            raise
        return {"parameters": parameters}


def _describe_model(path: Path) -> dict[str, Any]:
    from kgcli.weights.folder import open_model

    model = open_model(str(path), with_aligner=False)
    return {"model": str(path), "sha256": model.sha256, "decoder": model.decoder, **model.cfg.model_dump(mode="json")}


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested values under dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value) if isinstance(value, list) else value))
    return rows

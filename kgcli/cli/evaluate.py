"""`kg eval`: measure a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def nano(
    model: Annotated[str | None, typer.Option("--model", help="Model folder; default: the one shipped.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path("runs/eval/nano"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda.")] = "auto",
    num_samples: Annotated[int, typer.Option("--num-samples", help="Pictures per measure.")] = 200,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Of the prompts and pictures.")] = 0,
) -> None:
    """On the nano world: nouns, subjects, scenes, styles, two subjects, edits, beside ceiling and floor."""
    from kgcli import engine

    print(engine.evaluate("nano", model=model, out=out, device=device, num_samples=num_samples, seed=seed))

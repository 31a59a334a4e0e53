"""`kg data build compositional`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def build() -> None:
    """Build training data."""


@app.command()
def compositional(
    source: Annotated[Path, typer.Argument(help="Folder of shards of captioned images.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; an interrupted construction resumes.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of settings; default: CLIPSeg on given captions.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="Setting, as segmenter.use=sam3; repeatable."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the shards.")] = "compositional",
    engine: Annotated[str, typer.Option("--engine", help="pool (processes on this machine) or ray.")] = "pool",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, each with its own models.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Device of the models: auto, cpu or cuda.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print the yield table only.")] = False,
) -> None:
    """Build compositional samples from captioned images: entities, masks, crops, filters.

    Example: kg data build compositional shards/photos --to shards/compositional -s segmenter.model=FOLDER
    """
    from kgcli.cli.logs import set_up_logs
    from kgcli.construction.config import load_config
    from kgcli.construction.run import BuildPlan, run_build
    from kgcli.construction.table import models_of
    from kgcli.runtime import choose_device

    set_up_logs(quiet=quiet, offline=offline)
    settings = load_config(config, setting or [])
    plan = BuildPlan(
        source=source,
        folder=to,
        name=name,
        config=settings,
        engine=engine,
        num_workers=workers,
        device=choose_device(device) if models_of(settings) else "cpu",
        offline=offline,
    )
    print(run_build(plan, (lambda text: None) if quiet else lambda text: print(text, file=sys.stderr)))

"""`kg reproduce`: one of the paper's tables at nano size, from training to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.command import App
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DEVICE

app = App()


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="Table of the paper: table1, table2 or data.", show_default=False)],
    scale: Annotated[str, typer.Option("--scale", help="nano, or smoke (minutes; numbers are meaningless).")] = "nano",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Output folder; default: runs/reproduce/TABLE-SCALE.", show_default=False),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of training runs, found or new.")] = Path("runs"),
    rows: Annotated[
        str, typer.Option("--rows", metavar="A,B,...", help="Run only these rows; default: all.", show_default=False)
    ] = "",
    seeds: Annotated[
        int, typer.Option("--seeds", help="Number of seeds, of training and noise; intervals are then over seeds.")
    ] = 1,
    num: Annotated[
        int | None,
        typer.Option(
            "--num", metavar="INT", help="Number of captions of table2; default: that of the table.", show_default=False
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--num-images",
            metavar="INT",
            help="Images per prompt of a subject; default: that of the table.",
            show_default=False,
        ),
    ] = None,
    subjects: Annotated[
        str,
        typer.Option(
            "--subjects", metavar="A,B,...", help="Run only these subjects; default: all.", show_default=False
        ),
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder of the extractor weights; default: shipped.", show_default=False),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and generated.")] = False,
) -> None:
    """Train missing models, generate, score, and print the table beside the paper's; resumes if interrupted.

    Example: kg reproduce table1 --scale smoke
    """
    from kgcli.errors import UsageError
    from kgcli.evaluation.reproduce.paper import TABLES
    from kgcli.evaluation.reproduce.reproduction import Reproduction, describe

    if table not in TABLES:
        raise UsageError(f"there is no table {table}; there are {', '.join(TABLES)}")
    options = Reproduction(
        table=TABLES[table],
        out=out or runs / "reproduce" / f"{table}-{scale}",
        scale=scale,
        runs=runs,
        rows=_names(rows),
        num_seeds=seeds,
        num=num,
        num_images=num_images,
        subjects=_names(subjects),
        device=device,
    )
    if dry_run:
        typer.echo(describe(options))
        return
    set_up_logs()
    from kgcli.evaluation.reproduce.bench import run  # torch loads here

    typer.echo(run(options, weights))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())

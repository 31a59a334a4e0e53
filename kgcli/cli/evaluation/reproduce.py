"""`kg reproduce`: one of the paper's tables at nano size, from training to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DEVICE, flag
from kgcli.cli.parsing.command import App

app = App()


Table = Annotated[str, typer.Argument(help="Table of the paper: table1, table2 or data.", show_default=False)]
Scale = Annotated[
    str,
    flag(
        "--scale",
        metavar="NAME",
        help="nano, or smoke (minutes; numbers are meaningless); default: nano.",
    ),
]
Out = Annotated[
    Path | None,
    flag("-o", "--out", metavar="FOLDER", help="Output folder; default: runs/reproduce/TABLE-SCALE."),
]
Runs = Annotated[Path, flag("--runs", metavar="FOLDER", help="Folder of training runs, found or new; default: runs.")]
Rows = Annotated[str, flag("--rows", metavar="A,B,...", help="Run only these rows; default: all.")]
Seeds = Annotated[
    int,
    flag("--seeds", metavar="INT", help="Seeds of training and noise; more than 1 give intervals; default: 1."),
]
Num = Annotated[int | None, flag("--num", metavar="INT", help="Captions of table2; default: that of the table.")]
NumImages = Annotated[
    int | None,
    flag("-n", "--num-images", metavar="INT", help="Images per prompt of a subject; default: that of the table."),
]
Subjects = Annotated[str, flag("--subjects", metavar="A,B,...", help="Run only these subjects; default: all.")]
Weights = Annotated[
    Path | None,
    flag("--weights", metavar="FOLDER", help="Folder of eval_clip, eval_dino and judges; default: shipped."),
]
DryRun = Annotated[bool, flag("--dry-run", help="Print what would be trained and generated.")]


@app.command()
def reproduce(
    table: Table,
    scale: Scale = "nano",
    out: Out = None,
    runs: Runs = Path("runs"),
    rows: Rows = "",
    seeds: Seeds = 1,
    num: Num = None,
    num_images: NumImages = None,
    subjects: Subjects = "",
    weights: Weights = None,
    device: Annotated[str, DEVICE] = "auto",
    dry_run: DryRun = False,
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

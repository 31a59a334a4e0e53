"""`kg export`: a checkpoint's weights as the folder that its run would end with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.options import flag
from kgcli.cli.parsing.command import App

app = App()


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, or run folder for its newest one.", show_default=False)
    ],
    out: Annotated[Path, flag("-o", "--out", metavar="FOLDER", help="Folder to write. Required.")],
    overwrite: Annotated[bool, flag("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a training checkpoint as a run's final folder, before the run ends; averaged weights where it has them.

    The recipe's data and the weights that the run started from must still be there.

    Example: kg export runs/nano/unet -o unet_now
    """
    from kgcli.training.export import check_export

    check_export(checkpoint, out, overwrite=overwrite)
    from kgcli import engine  # torch loads here, after all checks

    typer.echo(str(engine.export(checkpoint, out, overwrite=overwrite)))

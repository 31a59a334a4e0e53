"""`kg eval compare` and `kg eval report`: scored runs beside each other, and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[list[Path], typer.Argument(help="Folders of scored runs.", show_default=False)]


def compare(
    runs: Runs,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare runs of one protocol: their measures, and paired differences from the first."""
    from kgcli.errors import UsageError
    from kgcli.evaluation.report.compare import compare as compare_runs
    from kgcli.evaluation.report.compare import open_runs

    if len(runs) < 2:
        raise UsageError(f"there is nothing to compare {runs[0]} with; give two runs or more")
    comparison = compare_runs(open_runs(runs))
    typer.echo(comparison.to_json() if as_json else str(comparison))


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write.")] = Path("report.html"),
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images", help="Folder of the pictures, one for each run; default: the runs.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the inputs, to show them; default: that of a nano suite."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write one HTML page: tables, plots, pictures and protocol of runs of one protocol."""
    from kgcli.errors import UsageError
    from kgcli.evaluation.report.compare import open_runs
    from kgcli.evaluation.report.page import build_page
    from kgcli.files import write_whole
    from kgcli.inference.output import check_writable

    if images and len(images) != len(runs):
        raise UsageError(f"{len(images)} --images were given for {len(runs)} runs; give one for each, in order")
    opened = open_runs(runs)
    check_writable(out)
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already; give --overwrite or another --out")
    page = build_page(opened, images or (), data=data or _cached_inputs(opened[0].scores.suite))
    write_whole(out, page, overwrite=overwrite)
    typer.echo(str(out))


def _cached_inputs(suite: str) -> Path | None:
    """Return where the input images of a nano suite are, unless a run of another suite names itself so."""
    from kgcli.evaluation.benchmarks.nano import COCO, DREAMBENCH
    from kgcli.evaluation.benchmarks.nano_data import cached_folder

    return cached_folder(suite) if suite in (COCO, DREAMBENCH) else None

"""`kg eval compare` and `kg eval report`: scored runs side by side, and as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli.cli.options import flag

if TYPE_CHECKING:
    from kgcli.evaluation.scores import Scores

Runs = Annotated[list[Path], typer.Argument(help="Run folders with scores.", show_default=False)]


def compare(
    runs: Runs,
    as_json: Annotated[bool, flag("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs of one protocol: measures, and paired differences from the first run.

    Example: kg eval compare runs/a runs/b
    """
    from kgcli.errors import UsageError
    from kgcli.evaluation.report.compare import compare as compare_runs
    from kgcli.evaluation.report.compare import open_runs

    if len(runs) < 2:
        raise UsageError(f"give two or more runs to compare, not only {runs[0]}")
    comparison = compare_runs(open_runs(runs))
    typer.echo(comparison.to_json() if as_json else str(comparison))


def report(
    runs: Runs,
    out: Annotated[Path, flag("-o", "--out", metavar="FILE", help="HTML file to write; default: report.html.")] = Path(
        "report.html"
    ),
    images: Annotated[
        list[Path] | None,
        flag(
            "--images",
            metavar="FOLDER",
            help="Folder of generated images, one per run, in order; default: the run folders.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        flag("--data", metavar="FOLDER", help="Folder of the input images to show; default: that of a nano suite."),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write one HTML page with tables, plots, images and the protocol of scored runs.

    Example: kg eval report runs/a runs/b -o page.html
    """
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
        raise UsageError(f"{out} already exists; give --overwrite or another --out")
    page = build_page(opened, images or (), data=data or _cached_inputs(opened[0].scores))
    write_whole(out, page, overwrite=overwrite)
    typer.echo(str(out))


def _cached_inputs(scores: Scores) -> Path | None:
    """Return the folder of a nano suite's input images, None for other suites and earlier versions."""
    from kgcli.evaluation.benchmarks.nano import COCO, DREAMBENCH
    from kgcli.evaluation.benchmarks.nano_data import cached_folder
    from kgcli.evaluation.benchmarks.nano_world import VERSION

    if scores.suite not in (COCO, DREAMBENCH) or scores.protocol.get("version") != VERSION:
        return None
    return cached_folder(scores.suite)

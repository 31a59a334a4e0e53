"""`kg data validate`, `kg data stats` and `kg data show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Shards = Annotated[Path, typer.Argument(help="Folder of shards, or one tar; also of other programs.")]


def validate(
    path: Shards,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
) -> None:
    """Check shards: hashes, indexes, records, images. Exit code 1 if there are faults.

    Example: kg data validate shards/photos
    """
    from kgcli.data.looking.validate import validate as check

    found = check(path, images=not quick)
    print(found)
    if found.faults:
        raise typer.Exit(1)


def stats(
    path: Shards, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Count rows, sizes of images, lengths of texts, entities and repeated images."""
    from kgcli.data.looking.stats import stats_of

    found = stats_of(path)
    print(json.dumps(found.as_dict()) if as_json else found)


def show(
    path: Shards,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write.")] = Path("sheet.html"),
    num: Annotated[int, typer.Option("-n", "--num", min=1, help="Rows to show.")] = 100,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", min=0, help="Show rows at random; default: the first.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a contact sheet as one HTML page: captions, images, crops and masks.

    Example: kg data show shards/photos -o photos.html
    """
    from kgcli.data.looking.sheet import write_sheet
    from kgcli.errors import UsageError
    from kgcli.files import write_whole

    if out.exists() and not overwrite:
        raise UsageError(f"{out} already exists; give --overwrite or another --out")
    write_whole(out, write_sheet(path, num=num, seed=seed), overwrite=overwrite)
    print(out)

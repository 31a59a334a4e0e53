"""`kg data import` and `kg data layouts`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Folder of the images that the source names; default: the source's.", show_default=False
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--column",
        metavar="FIELD=NAME",
        help="Column of a field, as caption=text; repeatable, default: the layout's.",
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help='Only rows that meet it, as "similarity >= 0.28"; repeatable, default: all rows.',
    ),
]


def import_data(
    layout: Annotated[str, typer.Argument(help="Layout of the source; `kg data layouts` lists them.")],
    source: Annotated[str, typer.Argument(help="File, folder, or for hugging-face a Hub id.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write the shards to; an interrupted import resumes.")],
    images: Images = None,
    column: Columns = None,
    split: Annotated[str, typer.Option("--split", help="Split of a Hugging Face data set.")] = "train",
    all_captions: Annotated[
        bool, typer.Option("--all-captions", help="Write a row for each caption of an image; default: its first.")
    ] = False,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Leave out what the published loader loses by mistake.")
    ] = False,
    where: Conditions = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the shards; default: the layout's.")] = None,
    rows_per_shard: Annotated[int, typer.Option("--rows-per-shard", min=1, help="Items of the source a shard.")] = 1000,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first items; default: all.")] = None,
    stop_on_fault: Annotated[
        bool, typer.Option("--stop-on-fault", help="Stop at the first damaged item; default: list it and go on.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print the summary only.")] = False,
) -> None:
    """Import a data set into shards.

    Example: kg data import folder photos --to shards/photos
    """
    from kgcli.data.importers.base import ImportOptions
    from kgcli.data.importers.run import ImportPlan, run_import
    from kgcli.data.importers.table import find_importer
    from kgcli.data.where import parse_condition

    options = ImportOptions(
        images=images,
        columns=_pairs(column),
        split=split,
        all_captions=all_captions,
        as_published=as_published,
        where=tuple(map(parse_condition, where or [])),
    )
    plan = ImportPlan(
        importer=find_importer(layout),
        source=source,
        folder=to,
        name=name or layout,
        options=options,
        rows_per_shard=rows_per_shard,
        limit=limit,
        stop_on_fault=stop_on_fault,
    )
    done = run_import(plan, (lambda text: None) if quiet else lambda text: print(text, file=sys.stderr))
    print(done)


def layouts() -> None:
    """List the layouts that can be imported.

    Example: kg data layouts
    """
    from kgcli.data.importers.table import IMPORTERS

    width = max(map(len, IMPORTERS))
    for name, importer in IMPORTERS.items():
        print(f"{name:{width}}  {importer.layout}")


def _pairs(given: list[str] | None) -> dict[str, str]:
    from kgcli.errors import UsageError

    found = {}
    for one in given or []:
        field, equals, name = one.partition("=")
        if not field or not name:
            raise UsageError(f"-c is {one!r}; write FIELD=NAME, as caption=text")
        found[field] = name
    return found

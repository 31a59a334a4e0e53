"""`kg ls`, `kg cp`, `kg cat`, `kg validate`: shipped recipes and example images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.command import App
from kgcli.errors import PartialBatchError, UsageError

Name = Annotated[str, typer.Argument(help="Name as printed by kg ls.", show_default=False)]

ls_app = App()
cp_app = App()
cat_app = App()
validate_app = App()


@ls_app.command()
def ls(
    prefix: Annotated[str, typer.Argument(help="List only names with this prefix.", show_default=False)] = "",
) -> None:
    """List the shipped recipes and example images."""
    from kgcli.weights.shipped import shipped_names

    for name in shipped_names():
        if name.startswith(prefix):
            print(name)


@cp_app.command()
def cp(
    name: Name,
    to: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Copy a shipped recipe or image."""
    from kgcli.files import write_whole
    from kgcli.inference.output import check_writable
    from kgcli.weights.shipped import get_shipped

    source = get_shipped(name)
    target = to / source.name if to.is_dir() else to
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists; give --overwrite or another name")
    check_writable(target)
    write_whole(target, source.read_bytes(), overwrite=overwrite)
    print(target)


@cat_app.command()
def cat(name: Name) -> None:
    """Print a shipped recipe."""
    from kgcli.weights.shipped import IMAGE_SUFFIXES, get_shipped

    source = get_shipped(name)
    if source.suffix in IMAGE_SUFFIXES:
        raise UsageError(f"{name} is an image; copy it with kg cp {name}")
    sys.stdout.write(source.read_text("utf-8"))


@validate_app.command()
def validate(
    names: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped recipes.", show_default=False)],
) -> None:
    """Check recipes without running them."""
    from kgcli.cli.failure import show
    from kgcli.errors import KgError

    failures = []
    for name in names:
        try:
            print(f"{name}: ok, {_check(name)}")
        except KgError as error:
            failures.append(error)
            show(error)
    if len(failures) == 1 == len(names):
        raise typer.Exit(failures[0].exit_code)
    if failures:
        raise PartialBatchError(f"{len(failures)} of {len(names)} recipes are wrong")


def _check(name: str) -> str:
    """Check a recipe and return its stage. Raises: KgError."""
    from kgcli.cli.train import stage_names
    from kgcli.data.sources.world_source import check_kinds
    from kgcli.errors import ConfigError
    from kgcli.recipe import load_recipe

    recipe = load_recipe(name)
    if recipe.stage not in stage_names():
        raise ConfigError(f"{name}: there is no stage {recipe.stage!r}; the stages are {', '.join(stage_names())}")
    for kinds in (recipe.data.kinds, *(source.kinds for source in recipe.data.sources)):
        if kinds:
            check_kinds(kinds)
    return recipe.stage

"""`kg ls`, `kg cp`, `kg cat`, `kg validate`, `kg schema`: shipped recipes and example images."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli import help_width, rows
from kgcli.cli.options import flag
from kgcli.cli.parsing import complete
from kgcli.cli.parsing.command import App
from kgcli.errors import PartialBatchError, UsageError

Name = Annotated[
    str, typer.Argument(help="Name as printed by kg ls.", show_default=False, autocompletion=complete.shipped)
]

ls_app = App()
cp_app = App()
cat_app = App()
schema_app = App()
validate_app = App()


@ls_app.command()
def ls(
    prefix: Annotated[
        str,
        typer.Argument(help="List only names with this prefix.", show_default=False, autocompletion=complete.shipped),
    ] = "",
    names: Annotated[bool, flag("--names", help="Print the names alone, one per line.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one JSON object per name.")] = False,
) -> None:
    """List the shipped recipes and example images, with descriptions.

    Example: kg ls nano/
    """
    from kgcli.weights.shipped import describe_shipped, is_image, shipped_names

    chosen = {name: describe_shipped(name) for name in shipped_names() if name.startswith(prefix)}
    if names:
        print("\n".join(chosen))
    elif as_json:
        for name, words in chosen.items():
            print(json.dumps({"name": name, "kind": "image" if is_image(name) else "recipe", "description": words}))
    else:
        blocks = []
        for title, kind in (("Recipes (kg cp NAME copies one)", False), ("Images (<image:NAME> in a prompt)", True)):
            if block := {name: words for name, words in chosen.items() if is_image(name) is kind}:
                blocks.append(f"{title}:\n{rows(block, help_width())}")
        print("\n".join(blocks), end="")


@cp_app.command()
def cp(
    name: Name,
    to: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Copy a shipped recipe or image.

    Example: kg cp nano/align mine.yaml
    """
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
    """Print a shipped recipe.

    Example: kg cat nano/align
    """
    from kgcli.weights.shipped import get_shipped, is_image

    source = get_shipped(name)
    if is_image(source.name):
        raise UsageError(f"{name} is an image; copy it with kg cp {name}")
    sys.stdout.write(source.read_text("utf-8"))


class SchemaKind(StrEnum):
    """The files and parts of files that have a schema."""

    RECIPE = "recipe"
    DATA = "data"
    OPTIM = "optim"
    MODEL = "model"


@schema_app.command()
def schema(
    kind: Annotated[
        SchemaKind, typer.Argument(help="A recipe, its data or optim part, or a model's config.json.")
    ] = SchemaKind.RECIPE,
) -> None:
    """Print a JSON schema, with which an editor completes and checks recipes.

    In VS Code with its YAML extension: kg schema > recipe.schema.json, and as a recipe's first line
    "# yaml-language-server: $schema=recipe.schema.json".

    Example: kg schema > recipe.schema.json
    """
    from kgcli.cli.train import stage_names
    from kgcli.training.checks.schema import make_schema

    print(json.dumps(make_schema(kind.value, stage_names()), indent=2))


@validate_app.command()
def validate(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Recipe files, or names of shipped recipes.", show_default=False, autocompletion=complete.recipes
        ),
    ],
) -> None:
    """Check recipes without running them.

    Example: kg validate nano/align mine.yaml
    """
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

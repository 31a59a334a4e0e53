"""`kg data`: training data as shards."""

from __future__ import annotations

import typer

from kgcli.cli.data import building
from kgcli.cli.data.importing import import_data, layouts
from kgcli.cli.data.looking import show, stats, validate

app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command("import")(import_data)
app.command("layouts")(layouts)
for command in (validate, stats, show):
    app.command()(command)
app.add_typer(building.app, name="build")


@app.callback()
def data() -> None:
    """Import, check, look at and build training data."""

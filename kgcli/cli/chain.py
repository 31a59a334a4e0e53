"""`kg train`: the recipes of a whole model, one after the other."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kgcli.cli.train import Overrides

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def train(
    chain: Annotated[str, typer.Argument(help="Name of a chain of recipes: nano.", show_default=False)],
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="Print what is done and what is next; train nothing.")] = False,
) -> None:
    """Run the recipes that make a model in order; finished ones are skipped, an interrupted one is resumed.

    Overrides are for all recipes, as in: kg train nano precision=bf16. Each recipe also runs alone, with kg base,
    kg pretrain, kg align and kg instruct.
    """
    from kgcli.training.chains import describe_chain, load_chain

    links = load_chain(chain, overrides)
    if show:
        print(describe_chain(links))
        return
    from kgcli.training.loop import train as run  # torch loads here, after all recipes are known to be sound

    for link in links:
        if not link.is_done:
            print(describe_chain(links), file=sys.stderr)
            run(link.recipe)
    print(describe_chain(links))

"""`kg generate` and `kg edit`."""

from __future__ import annotations

from typing import Annotated

import typer

from kgcli.cli.options import DrawFlags, takes_draw_flags

generate_app = typer.Typer(rich_markup_mode=None, add_completion=False)
edit_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@generate_app.command()
@takes_draw_flags()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text with <image:PATH> in it.", show_default=False)] = None,
    *,
    flags: DrawFlags,
) -> None:
    """Make pictures of a prompt with pictures in it.

    An image tag stands anywhere, any number of times: <image:cat.png>, <image:cat.png|weight=0.8,fit=crop>,
    or <image:-1> for the first --image. A plain < is written \\<. An image that is not square is padded with
    white (fit=pad), cut (fit=crop) or squeezed (fit=stretch); the model says which is the default, mostly pad.
    """
    from kgcli.cli import draw

    draw.run(prompt, flags)


@edit_app.command()
@takes_draw_flags(without=("batch", "from_", "allow_download"))
def edit(
    image: Annotated[str, typer.Argument(help="The picture to edit.", show_default=False)],
    instruction: Annotated[str, typer.Argument(help="What to change, as in: add a hat.", show_default=False)],
    *,
    flags: DrawFlags,
) -> None:
    """Carry out an instruction on a picture. One that is not square is cut about its centre."""
    from kgcli.cli import draw
    from kgcli.inference.request import edit_prompt

    draw.run(edit_prompt(image, instruction), flags)

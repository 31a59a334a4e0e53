"""The command `kg`. One thin file per command, loaded when the command is called; no torch at import."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

import kgcli
from kgcli.cli.failure import exit_code_of

# Command -> (module and its Typer app, what `kg --help` says of it), so that help imports none of them.
COMMANDS = {
    "generate": ("generate:generate_app", "Make pictures of a prompt with pictures in it."),
    "edit": ("generate:edit_app", "Carry out an instruction on a picture."),
    "inspect": ("inspect:app", "Show how a picture was made, or what a model folder holds."),
    "pretrain": ("train:pretrain_app", "Stage 1: teach the language model to read text and pictures."),
    "align": ("train:align_app", "Stage 2: teach AlignerNet the language of CLIP, on text alone."),
    "instruct": ("train:instruct_app", "Stage 3: learn to draw what a prompt with pictures says."),
    "base": ("train:base_app", "Train the parts the nano model starts from: VAE, CLIP, U-Net."),
    "eval": ("evaluate:app", "Measure a model."),
    "ls": ("recipes:ls_app", "List the shipped recipes and example pictures."),
    "cp": ("recipes:cp_app", "Copy a shipped recipe or picture."),
    "cat": ("recipes:cat_app", "Print a shipped recipe."),
    "validate": ("recipes:validate_app", "Check recipes without running them."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when one of them is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """The names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | TyperGroup | None:
        """The command of a name, imported."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = typer.main.get_command(getattr(import_module(f"kgcli.cli.{module}"), attribute))
        command.name = cmd_name
        assert isinstance(command, TyperCommand | TyperGroup), "typer makes no other commands"
        return command

    def format_commands(self, ctx: typer.Context, formatter: typer.core._click.HelpFormatter) -> None:
        """The list of commands from the table, none of them imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


# Plain help: rich's panels would triple the time of `kg --help`.
app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kg {kgcli.__version__}")
        raise typer.Exit


@app.callback()
def kg(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """KOSMOS-G: pictures from text and pictures.

    kg generate "a cat <image:cat.png> in Minecraft" -o out.png
    """


def main(args: list[str] | None = None) -> None:
    """Run `kg`; turn every failure into one line and an exit code."""
    signal.signal(signal.SIGTERM, _leave)
    args = sys.argv[1:] if args is None else args
    try:
        code = app(args or ["--help"], prog_name="kg", standalone_mode=False) or 0
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (the one place where failures end)
        code = exit_code_of(error)
        if isinstance(error, BrokenPipeError):
            # The reader of our output has gone; Python's own flush at exit must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def _leave(signum: int, frame: object) -> None:
    """On `kill`: unwind, so that unfinished files are removed."""
    raise SystemExit(128 + signum)

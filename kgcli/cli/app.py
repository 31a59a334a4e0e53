"""The typer application of `kg`, and the handling of its failures."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from kgcli.cli import COMMANDS, help_text, help_width
from kgcli.cli.failure import INTERRUPTED, exit_code_of
from kgcli.cli.logs import quiet_imports
from kgcli.cli.parsing.command import HELP_NAMES, Group
from kgcli.version import __version__


class LazyGroup(Group):
    """A group that imports a command when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of a call; help texts are as wide as the terminal."""
        names = {"help_option_names": HELP_NAMES, "terminal_width": help_width(), "token_normalize_func": _dashed}
        return super().make_context(info_name, args, parent, **{**names, **extra})

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = typer.main.get_command(getattr(import_module(f"kgcli.cli.{module}"), attribute))
        command.name = cmd_name
        return command

    def get_help(self, ctx: Any) -> str:
        """Return the text that `kg --help` prints without typer."""
        return help_text().rstrip("\n")


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=True, pretty_exceptions_enable=False)


def _dashed(name: str) -> str:
    """Return an option's name with dashes: --num_images is --num-images."""
    return name.replace("_", "-")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kg {__version__}")
        raise typer.Exit


@app.callback()
def kg(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False) -> None:
    """KOSMOS-G: generate images from interleaved text and images."""


class Ending:
    """Context that turns any failure into one line on stderr and an exit code, `code`."""

    code: int = 0

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            try:
                sys.stdout.flush()
            except OSError as failure:
                error = failure
        if error is not None:
            self.code = exit_code_of(error)
        if isinstance(error, BrokenPipeError):
            close_stdout()
        if self.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
            print("error: interrupted; finished files are kept", file=sys.stderr)
        return True


def run(args: list[str]) -> int:
    """Run a command and return its exit code; failures become one line on stderr."""
    quiet_imports()
    with Ending() as end:
        end.code = app(args, prog_name="kg", standalone_mode=False) or 0
    return end.code


def close_stdout() -> None:
    """Redirect stdout to null after a broken pipe, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unwind_on_kill() -> None:
    """Raise on SIGTERM and SIGHUP, so that unfinished files are removed."""
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _leave)


def _leave(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)

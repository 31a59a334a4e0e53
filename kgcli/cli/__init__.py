"""The command `kg`. One thin file per command, loaded when the command is called; no torch at import.

`kg --help` is answered from the table below: importing typer alone takes as long as all of it may.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from kgcli.version import __version__

if TYPE_CHECKING:
    from kgcli.cli.app import app

__all__ = ["app", "main"]

# Command -> (module and its Typer app, what `kg --help` says of it).
COMMANDS = {
    "generate": ("generate:generate_app", "Make pictures of a prompt with pictures in it."),
    "edit": ("generate:edit_app", "Carry out an instruction on a picture."),
    "encode": ("encode:app", "Write a prompt as embeddings for other programs."),
    "inspect": ("inspect:app", "Show how a picture was made, or what a model folder holds."),
    "pretrain": ("train:pretrain_app", "Stage 1: teach the language model to read text and pictures."),
    "align": ("train:align_app", "Stage 2: teach AlignerNet the language of CLIP, on text alone."),
    "instruct": ("train:instruct_app", "Stage 3: learn to draw what a prompt with pictures says."),
    "base": ("train:base_app", "Train what the nano model starts from, or its adapters."),
    "train": ("chain:app", "Run the recipes of a whole model in order; resumes."),
    "convert": ("convert:app", "Make a model folder of a published checkpoint, or the way back."),
    "models": ("models:app", "List, fetch and verify published weights; show the sizes of a model."),
    "eval": ("evaluate:app", "Measure a model."),
    "reproduce": ("reproduce:app", "Make the paper's tables at nano size: train, draw, score, compare."),
    "ls": ("recipes:ls_app", "List the shipped recipes and example pictures."),
    "cp": ("recipes:cp_app", "Copy a shipped recipe or picture."),
    "cat": ("recipes:cat_app", "Print a shipped recipe."),
    "validate": ("recipes:validate_app", "Check recipes without running them."),
}
LISTS = (["models", "ls"], ["models", "ls", "--json"])


def help_text() -> str:
    """What `kg --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "Usage: kg [OPTIONS] COMMAND [ARGS]...\n\n"
        "  KOSMOS-G: pictures from text and pictures.\n\n"
        '  kg generate "a cat <image:cat.png> in Minecraft" -o out.png\n\n'
        "Options:\n  --version  Print the version and leave.\n  --help     Show this message and leave.\n\n"
        f"Commands (kg COMMAND --help says more):\n{commands}\n"
    )


def main(args: list[str] | None = None) -> None:
    """Run `kg`; turn every failure into one line and an exit code."""
    own_process = args is None
    args = sys.argv[1:] if args is None else args
    if args and args not in (["--help"], ["--version"], *LISTS):
        import kgcli.runtime as runtime
        from kgcli.cli.app import Ending, app, unwind_on_kill

        runtime.own_process = own_process
        unwind_on_kill()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names that are not UTF-8 go out as they came in
                stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
        with Ending() as end:
            end.code = app(args, prog_name="kg", standalone_mode=False) or 0
        raise SystemExit(end.code)
    try:
        sys.stdout.write(_answer(args))
        sys.stdout.flush()
    except BrokenPipeError:
        from kgcli.cli.app import close_stdout

        close_stdout()
        raise SystemExit(1) from None


def _answer(args: list[str]) -> str:
    """What needs no typer, the import of which takes most of the time that these may take."""
    if args in LISTS:
        from kgcli.weights.published.catalogue import sources_text

        return sources_text(as_json="--json" in args)
    return f"kg {__version__}\n" if args == ["--version"] else help_text()


def __getattr__(name: str) -> Any:
    """`app`, the typer application, imported when first asked for."""
    if name == "app":
        from kgcli.cli.app import app

        return app
    raise AttributeError(f"module 'kgcli.cli' has no attribute {name!r}")

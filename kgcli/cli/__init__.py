"""The command `kg`. One thin file per command, imported when the command is called.

`kg --help` is answered from the table below, without importing typer, which would take most of its time budget.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from kgcli.version import __version__

if TYPE_CHECKING:
    from kgcli.cli.app import app

__all__ = ["app", "main"]

# Command -> (module and its Typer app, help text).
COMMANDS = {
    "generate": ("generate:generate_app", "Generate images from a prompt of text and images."),
    "edit": ("generate:edit_app", "Edit an image by an instruction."),
    "explain": ("pages.explain:app", "Show which reference and which word shaped which region of an image."),
    "shell": ("live.shell:app", "Generate prompt after prompt with a model that stays loaded."),
    "serve": ("live.serve:app", "Serve a model over HTTP with OpenAI's image routes."),
    "encode": ("encode:app", "Write prompt embeddings for other programs."),
    "app": ("pages.window:app", "Open a page in the browser, on this machine only (extra: app)."),
    "inspect": ("inspect:app", "Show the metadata of an image, or the configuration of a model folder."),
    "pretrain": ("train:pretrain_app", "Stage 1: train the multimodal language model on text and images."),
    "align": ("train:align_app", "Stage 2: align AlignerNet with the CLIP text encoder, on captions alone."),
    "instruct": ("train:instruct_app", "Stage 3: learn to generate images from interleaved prompts."),
    "base": ("train:base_app", "Train the nano model's base parts, adapters or evaluation models."),
    "train": ("train:chain_app", "Run the recipes of a whole model in order; resumes."),
    "export": ("export:app", "Export a training checkpoint as the folder that its run would end with."),
    "data": ("data:app", "Import, check, look at and build training data."),
    "convert": ("convert:app", "Convert a published checkpoint to a model folder, or back."),
    "models": ("models:app", "List, download and verify published weights; show a model's sizes."),
    "eval": ("evaluation.evaluate:app", "Evaluate models: benchmarks, comparison, report."),
    "reproduce": ("evaluation.reproduce:app", "Reproduce the paper's tables at nano size: train, generate, score."),
    "bench": ("live.bench:app", "Measure the speed of generating, encoding or training on this machine."),
    "ls": ("recipes:ls_app", "List the shipped recipes and example images."),
    "cp": ("recipes:cp_app", "Copy a shipped recipe or image."),
    "cat": ("recipes:cat_app", "Print a shipped recipe."),
    "doctor": ("doctor.commands:doctor_app", "Check this installation and machine."),
    "env": ("doctor.commands:env_app", "Print versions and settings for a bug report."),
    "validate": ("recipes:validate_app", "Check recipes without running them."),
    "schema": ("recipes:schema_app", "Print the JSON schema of recipes or models, for editors."),
}
LISTS = (["models", "ls"], ["models", "ls", "--json"])


OPTIONS = {
    "--version": "Print the version and exit.",
    "--install-completion": "Install completion of commands, options and names in this shell.",
    "--show-completion": "Print the completion script of this shell.",
    "-h, --help": "Show this message and exit; kg COMMAND --help lists the options of a command.",
}
EXAMPLE = 'kg generate "a <image:nano/cat.png>"'
NARROWEST, WIDEST = 40, 110  # columns of help texts; longer lines are hard to read
TWO_COLUMNS = 64  # columns from which a help text stands beside its name


def help_text() -> str:
    """Return the output of `kg --help`, as wide as the terminal."""
    wide = help_width()
    commands = {name: text for name, (_, text) in COMMANDS.items()}
    return (
        "Usage: kg [OPTIONS] COMMAND [ARGS]...\n\n"
        + "".join(
            f"  {line}\n" for line in _wrapped("KOSMOS-G: generate images from interleaved text and images.", wide - 2)
        )
        + f"\nExample:\n  {EXAMPLE}\n\nOptions:\n{rows(OPTIONS, wide)}\nCommands:\n{rows(commands, wide)}"
    )


def help_width() -> int:
    """Return the columns of help texts: those of the terminal, between NARROWEST and WIDEST."""
    columns = os.environ.get("COLUMNS", "")
    try:
        wide = int(columns) if columns.isdigit() and int(columns) else os.get_terminal_size().columns
    except OSError:  # no terminal
        wide = 80
    return min(max(wide, NARROWEST), WIDEST)


def rows(texts: dict[str, str], wide: int) -> str:
    """Return names and texts, side by side where the width allows."""
    left = max(map(len, texts)) + 4 if wide >= TWO_COLUMNS else 4
    lines = []
    for name, text in texts.items():
        beside = _wrapped(text, wide - left)
        if len(name) + 4 > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:{left - 2}}{beside.pop(0)}")
        lines += [" " * left + line for line in beside]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, wide: int) -> list[str]:
    """Return lines of at most `wide` columns; textwrap would take a third of the time of `kg --help` to import."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > wide:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def main(args: list[str] | None = None) -> None:
    """Run `kg`; turn every failure into one line and an exit code."""
    own_process = args is None
    args = sys.argv[1:] if args is None else args
    if "_KG_COMPLETE" in os.environ or (args and args not in (["--help"], ["-h"], ["--version"], *LISTS)):
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
    """Return the output of a call that is answered without importing typer."""
    if args in LISTS:
        from kgcli.weights.published.catalogue import sources_text

        return sources_text(as_json="--json" in args)
    return f"kg {__version__}\n" if args == ["--version"] else help_text()


def __getattr__(name: str) -> Any:
    """Import `app`, the typer application, on first use."""
    if name == "app":
        from kgcli.cli.app import app

        return app
    raise AttributeError(f"module 'kgcli.cli' has no attribute {name!r}")

"""`kg models`: list, download and verify published weights; show the sizes of a model's parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli.cli import help_width, rows
from kgcli.cli.options import OFFLINE, QUIET, flag
from kgcli.cli.parsing import complete
from kgcli.cli.parsing.command import App

if TYPE_CHECKING:
    from kgcli.config import ModelConfig
    from kgcli.weights.words import KnownWords

FULL_SIZE = "kosmosg"  # name of the published sizes
WIDTH = 52  # columns of the longest part's name

app = App()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def models() -> None:
    """List, download and verify published weights; show what a model knows and its sizes."""


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per source.")] = False) -> None:
    """List the supported published weights and their location on this machine.

    Example: kg models ls --json
    """
    from kgcli.weights.published.catalogue import sources_text

    print(sources_text(as_json=as_json), end="")


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="kosmosg or kosmos-2; see kg models ls.", autocompletion=complete.published)
    ],
    to: Annotated[
        Path | None,
        flag("--to", metavar="FOLDER", help="Model folder to write; default: in the cache, found by --model NAME."),
    ] = None,
    revision: Annotated[
        str | None,
        flag("--revision", metavar="NAME", help="Branch, tag or commit of the repository; default: the listed one."),
    ] = None,
    source: Annotated[
        str | None,
        flag("--from", metavar="SOURCE", help="Local file or folder, or a Hub repository; default: the first listed."),
    ] = None,
    dtype: Annotated[
        str | None,
        flag(
            "--dtype",
            metavar="DTYPE",
            help="Precision to write: float16, bfloat16 or float32; default: that of the file.",
        ),
    ] = None,
    accept: Annotated[bool, flag("--accept", help="Accept an unofficial mirror, whatever its licence.")] = False,
    sha256: Annotated[
        str | None, flag("--sha256", metavar="HEX", help="Expected hash of the file; default: the listed one.")
    ] = None,
    offline: Annotated[bool, OFFLINE] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Download published weights, check their sha256 and convert them; an interrupted download is resumed.

    Example: kg models pull kosmos-2 --dtype float16
    """
    from kgcli.cli.logs import set_up_logs

    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.weights.published import pull as pulling

    options = pulling.PullOptions(
        to=to, revision=revision, source=source, dtype=dtype, accept=accept, sha256=sha256, offline=offline
    )
    print(pulling.pull(name, options))


@app.command()
def verify(
    model: Annotated[
        str, typer.Argument(help="Model folder, or the name of a pulled model.", autocompletion=complete.models)
    ],
) -> None:
    """Check that a model folder is complete, matches its config.json, and has its recorded sha256.

    Example: kg models verify kosmosg
    """
    from kgcli.weights.published import record

    for line in record.verify(model):
        print(line)


@app.command()
def show(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"Model folder, name of a pulled model, Hub id or {FULL_SIZE}; default: nano, the shipped model.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    full_size: Annotated[bool, flag("--full-size", help="Show the published model's sizes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model knows (words, subjects, size), and its parameters beside the paper's; no weights are read.

    Example: kg models show nano
    """
    from kgcli.weights.sizes import count_parameters  # torch loads here, without a device

    name, cfg, known = _find(model, full_size)
    parameters = count_parameters(cfg)
    if as_json:
        numbers = {part.name: number for part, number in parameters}
        words = None if known is None else known.model_dump(mode="json", exclude={"other"})
        print(json.dumps({"model": name, "knows": words, "parameters": numbers}))
        return
    if known is not None:
        print(f"{_describe(known, help_width())}\n")
    print(f"{'parameters':{WIDTH}} {name:>14} {'paper':>7}")
    for part, number in parameters:
        print(f"{part.name:{WIDTH}} {number:14,} {part.paper:>7}".rstrip())


def _find(model: str | None, full_size: bool) -> tuple[str, ModelConfig, KnownWords | None]:
    """Return a model's name, sizes and known words. Raises: KgError."""
    from kgcli.config import ModelConfig
    from kgcli.errors import UsageError
    from kgcli.weights.config import read_model_config
    from kgcli.weights.folder import open_model
    from kgcli.weights.shipped import DEFAULT_MODEL, DEFAULT_NAME
    from kgcli.weights.words import read_words

    if full_size and model is not None:
        raise UsageError(f"--full-size shows the published sizes, not those of {model}; give one of them")
    shipped = model is None or (model == DEFAULT_NAME and not Path(model).is_dir())
    folder = DEFAULT_MODEL if shipped else Path(str(model)).expanduser()
    if full_size or (model == FULL_SIZE and not folder.is_dir()):
        return FULL_SIZE, ModelConfig(), None
    if not folder.is_dir():
        found = open_model(model, with_decoder=False, with_aligner=False)
        return str(model), found.cfg, found.words
    return DEFAULT_NAME if shipped else folder.name, read_model_config(folder), read_words(folder)


def _describe(known: KnownWords, wide: int) -> str:
    """Return the lists of a model as text of at most `wide` columns."""
    parts = {name: ", ".join(phrases) for name, phrases in known.lists.items()}
    if known.num_subjects is not None:
        parts["subjects"] = f"at most {known.num_subjects} in one image"
    if known.sizes:
        parts["size"] = " or ".join(f"{width} x {height}" for width, height in known.sizes) + " pixels"
    return rows(parts, wide).rstrip()

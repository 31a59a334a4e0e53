"""How commands of `kg` read arguments and show help: options in groups, at any width, with suggestions."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from kgcli.cli import TWO_COLUMNS
from kgcli.cli.failure import CommandError

FEW = 6  # options up to this number stay in one group
F = TypeVar("F", bound=Callable[..., Any])

HELP_NAMES = ["-h", "--help"]
OTHER = "Other options"
EXAMPLE = "Example: "
SEVERAL = "..."  # end of the metavar of an option that takes several values after it

# Heading -> long names of its options, whichever command they belong to.
GROUPS: dict[str, tuple[str, ...]] = {
    "Prompt": ("--negative-prompt", "--image", "--batch", "--from", "--allow-download"),
    "Image": ("--num-images", "--seed", "--steps", "--guidance-scale", "--width", "--height", "--size", "--scheduler"),
    "Benchmark": (
        *("--suite", "--data", "--subjects", "--captions", "--num", "--noise", "--class-noun", "--only"),
        *("--before", "--table", "--scale", "--runs", "--rows", "--seeds"),
    ),
    "System to evaluate": ("--method", "--set", "--images", "--name"),
    "Scoring": ("--weights", "--masks", "--segmenter", "--also", "--preset", "--real", "--judges"),
    "Output": (
        *("--out", "--to", "--grid", "--preview", "--json", "--no-metadata", "--overwrite", "--skip-existing"),
        *("--shard-size", "--dry-run", "--list", "--names", "--quiet", "--verbose", "--words"),
    ),
    "Model": (
        *("--model", "--decoder", "--clip", "--dict", "--spm", "--config", "--revision", "--accept", "--sha256"),
        *("--offline",),
    ),
    "Training": ("--resume",),
    "Speed": (
        *("--device", "--dtype", "--offload", "--quantize", "--threads", "--engine", "--workers"),
        *("--batch-size", "--compile", "--repeats"),
    ),
    "Server": ("--host", "--port", "--queue", "--max-upload", "--open"),
    "Import": (
        *(
            "--column",
            "--split",
            "--all-captions",
            "--as-published",
            "--where",
            "--rows-per-shard",
            "--limit",
            "--stop-on-fault",
        ),
    ),
    "Adapters": ("--lora", "--controlnet", "--controlnet-model", "--map-model"),
}
_LIST_TYPE = re.compile(r"<list\[(\w+)\]>")
_SHELL_WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")


class Command(TyperCommand):
    """A command with grouped help; its list options take several values in a row, as in `-s 1 2 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments. Raises: CommandError."""
        try:
            return super().parse_args(ctx, self._spread(args))
        except typer.TyperException as error:
            raise CommandError(explain(error, self), ctx.command_path) from None

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description and, not rewrapped, the example."""
        write_description(self.help or "", formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, and options in their groups."""
        write_parameters(self, ctx, formatter)

    def _spread(self, args: list[str]) -> list[str]:
        """Repeat a list option before each of the integers that follow it."""
        lists = {name for one in self.params if _takes_several(one) for name in one.opts}
        spread: list[str] = []
        option = ""  # whose values may follow
        for at, arg in enumerate(args):
            if arg == "--":
                return spread + args[at:]
            follows = bool(option) and arg.isascii() and arg.isdigit()
            spread += [option, arg] if follows and spread[-1] != option else [arg]
            if not follows:
                name = arg.partition("=")[0]
                option = name if name in lists else ""
        return spread


class Group(TyperGroup):
    """A group of commands with grouped help and suggestions for unknown names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments up to the command. Raises: CommandError."""
        try:
            return super().parse_args(ctx, args or self._default_args())
        except typer.TyperException as error:
            raise CommandError(explain(error, self), ctx.command_path) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of the first argument. Raises: CommandError that suggests another."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            meant = SYNONYMS.get(f"{ctx.command_path} {name}")
            hint = f"; did you mean `{meant}`?" if meant else did_you_mean(name, self.list_commands(ctx))
            raise CommandError(f"there is no command {ctx.command_path} {name}{hint}", ctx.command_path)
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            raise CommandError(explain(error, self), ctx.command_path) from None

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description and, not rewrapped, the example."""
        write_description(self.help or "", formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands."""
        write_parameters(self, ctx, formatter)
        rows = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            write_rows([(name, first_sentence(command.help or "")) for name, command in rows if command], formatter)

    def _default_args(self) -> list[str]:
        """Return the arguments of a call without any: its help."""
        return [] if self.invoke_without_command else ["--help"]


class App(typer.Typer):
    """A typer application whose commands are `Command`s in a `Group`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=Group, rich_markup_mode=None, add_completion=False, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a function as a command, as typer does."""
        return super().command(name, **{"cls": Command, **options})


# What users of other programs type -> the command here.
SYNONYMS: Mapping[str, str] = {
    "kg download": "kg models pull",
    "kg pull": "kg models pull",
    "kg list": "kg ls",
    "kg copy": "kg cp",
    "kg show": "kg models show",
    "kg finetune": "kg instruct",
    "kg fine-tune": "kg instruct",
    "kg run": "kg generate",
    "kg sample": "kg generate",
    "kg info": "kg env",
    "kg help": "kg --help",
    "kg version": "kg --version",
    "kg evaluate": "kg eval",
    "kg models list": "kg models ls",
    "kg models download": "kg models pull",
}


def explain(error: typer.TyperException, command: Any) -> str:
    """Return the message of an error in a command's arguments, with a suggestion for an unknown option."""
    message = error.format_message().rstrip(".")
    if found := re.match(r"No such option: (\S+)", message):
        known = [name for one in command.params for name in one.opts if name.startswith("--")]
        return f"there is no option {found[1]}" + did_you_mean(found[1], [*known, "--help"])
    if found := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)$", message):
        return f"unexpected argument {found[1]!r}; put quotes around an argument that contains spaces"
    return message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion of the known name nearest to `name`, "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def write_description(text: str, formatter: Any) -> None:
    """Write the paragraphs of a help text; a paragraph with an example becomes a section with whole shell words."""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if not line:
            continue
        if not line.startswith(EXAMPLE):
            formatter.write_paragraph()
            formatter.indent()
            formatter.write_text(line)
            formatter.dedent()
            continue
        with formatter.section(EXAMPLE.rstrip(": ")):
            formatter.write("\n".join(wrap_command(line.removeprefix(EXAMPLE), formatter.width)) + "\n")


def wrap_command(command: str, width: int) -> list[str]:
    """Return the lines of a shell command, continued by backslashes where it is longer than `width`."""
    lines = [""]
    for word in _SHELL_WORD.findall(command):
        if lines[-1] and 2 + len(lines[-1]) + 1 + len(word) + 2 > width:  # indent, blank, blank and backslash
            lines.append("  ")
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return [f"  {line}{end}" for line, end in zip(lines, [" \\"] * (len(lines) - 1) + [""], strict=True)]


def write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the arguments of a command, and its options under the headings of `GROUPS`."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    options = [one for one in command.get_params(ctx) if isinstance(one, TyperOption) and not one.hidden]
    few = len(options) <= FEW
    for one in command.get_params(ctx):
        record = one.get_help_record(ctx)
        if record is not None:
            record = _LIST_TYPE.sub(r"<\1>", record[0]), record[1]
            heading = "Arguments" if not isinstance(one, TyperOption) else "Options" if few else heading_of(one)
            groups.setdefault(heading, []).append(record)
    order = ["Arguments", "Options", *GROUPS, *sorted(groups.keys() - GROUPS.keys()), OTHER]
    for heading in dict.fromkeys(order):
        if rows := groups.get(heading):
            with formatter.section(heading):
                write_rows(rows, formatter)


def heading_of(option: TyperOption) -> str:
    """Return the heading under which an option stands."""
    named = option.rich_help_panel
    return named or next((heading for heading, names in GROUPS.items() if {*names} & {*option.opts}), OTHER)


def write_rows(rows: list[tuple[str, str]], formatter: Any) -> None:
    """Write names and texts, side by side where the width allows, else texts below their names."""
    if rows and formatter.width >= TWO_COLUMNS:
        formatter.write_dl(rows)
        return
    for name, text in rows:
        wide = formatter.width
        formatter.write(textwrap.fill(name, wide, initial_indent="  ", subsequent_indent="    ") + "\n")
        formatter.write(textwrap.fill(text, wide, initial_indent=" " * 6, subsequent_indent=" " * 6) + "\n")


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text."""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)])[.;] ", line)[0].rstrip(".") + "." if line else ""


def _takes_several(option: Any) -> bool:
    return isinstance(option, TyperOption) and (option.metavar or "").endswith(SEVERAL)

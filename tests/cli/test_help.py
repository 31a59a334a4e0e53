"""Help of every command: at any width, in groups, with defaults and an example; names and flags that are wrong."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from kgcli.cli import COMMANDS, help_text
from kgcli.cli.app import app
from kgcli.cli.parsing.command import FEW, OTHER, Command, heading_of

ROOT = Path(__file__).parents[2]


def commands(command=None, path=()):
    """Yield every command and group below `kg`, with the words that call it."""
    command = command or typer.main.get_command(app)
    if path:
        yield path, command
    if isinstance(command, TyperGroup):
        for name in command.list_commands(None):
            yield from commands(command.get_command(None, name), (*path, name))


ALL = dict(commands())
OPTIONS = [(path, one) for path, command in ALL.items() for one in command.params if isinstance(one, TyperOption)]
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, TyperGroup)}


def name_of(value):
    return " ".join(value) if isinstance(value, tuple) else getattr(value, "name", None)


@pytest.mark.parametrize("width", [40, 64, 80, 120, 200])
def test_help_fits_the_terminal(kg, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, help_text().splitlines())) <= width
    for path in ALL:
        shown = kg(*path, "--help")
        assert shown.code == 0
        long = [line for line in shown.lines if len(line) > width]
        assert not long, (path, long)


@pytest.mark.parametrize("columns", ["0", "-3", "many", ""])
def test_a_width_that_is_no_width_is_ignored(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert help_text().startswith("Usage: kg")


@pytest.mark.parametrize("path", LEAVES, ids=name_of)
def test_a_command_shows_an_example_of_itself(kg, path):
    shown = kg(*path, "-h")
    example = shown.out.partition("Example:")[2].partition("\n\n")[0].replace("\\\n", " ")
    words = shlex.split(example)
    assert words[: len(path) + 1] == ["kg", *path]
    flags = {word.partition("=")[0] for word in words if word.startswith("-") and not word[1:].isdigit()}
    assert flags <= {name for one in LEAVES[path].params for name in one.opts}


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=name_of)
def test_an_option_says_its_default(path, option):
    assert option.help, option.opts
    if not option.is_flag and not option.required:
        shown = option.get_help_record(typer.main.get_command(app).make_context("kg", ["ls"]))[1]
        assert "default" in shown, (path, option.opts, shown)


@pytest.mark.parametrize("path", LEAVES, ids=name_of)
def test_options_are_grouped(path):
    command = LEAVES[path]
    assert isinstance(command, Command)
    options = [one for one in command.params if isinstance(one, TyperOption)]
    if len(options) >= FEW:
        assert [one.opts for one in options if heading_of(one) == OTHER] == []


def test_groups_have_headings_in_order(kg):
    shown = kg("generate", "-h").lines
    headings = [line.rstrip(":") for line in shown if line.endswith(":") and not line.startswith(" ")]
    expected = ["Example", "Arguments", "Prompt", "Image", "Output", "Model", "Speed", "Adapters", "Other options"]
    assert headings == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generat"], "did you mean generate?"),
        (["download", "kosmosg"], "did you mean `kg models pull`?"),
        (["list"], "did you mean `kg ls`?"),
        (["eval", "dreambnch"], "did you mean dreambench?"),
        (["models", "list"], "did you mean `kg models ls`?"),
        (["edit", "--stps", "3"], "did you mean --steps?"),
        (["eval", "nano", "--devce", "cpu"], "did you mean --device?"),
        (["--verison"], "did you mean --version?"),
        (["generate", "a", "cat"], "unexpected argument 'cat'; put quotes"),
        (["generate", "a", "-s", "1", "2", "x"], "unexpected argument 'x'"),
        (["edit", "cat.png"], "Missing argument"),
        (["generate", "a", "-n", "x"], "'--num-images': Input should be a valid integer"),
    ],
)
def test_a_wrong_name_gets_a_suggestion_and_the_real_command(kg, without_engine, args, words):
    done = kg(*args)
    assert done.code == 2 and words in done.err and "Traceback" not in done.err
    path = (
        ["kg", *args[:2]]
        if args[0] == "eval" and args[1] == "nano"
        else ["kg", *(args[:1] if args[0] in COMMANDS else [])]
    )
    assert f"{' '.join(path)} --help lists" in done.err


def test_seeds_may_follow_one_flag(kg, tiny_model):
    flags = ["--model", tiny_model, "-o", "out/"]
    assert kg("generate", "a cat", "-s", "1", "2", "3", *flags).lines == [f"out/a-cat-{seed}.png" for seed in (1, 2, 3)]
    assert kg("generate", *flags, "--seed=4", "5", "--steps", "1", "a dog").lines == [
        "out/a-dog-4.png",
        "out/a-dog-5.png",
    ]
    assert kg("generate", *flags, "-s", "6", "--", "7").lines == ["out/7-6.png"]


def test_underscores_in_options_are_dashes(kg, tiny_model):
    done = kg("generate", "a cat", "--num_images", "1", "--guidance_scale", "2", "-s", "1", "--model", tiny_model)
    assert done.lines == ["a-cat-1.png"]


# ---------------------------------------------------------------- completion


def complete(words: str) -> tuple[list[str], set[str], float]:
    """Return the completions that bash would get, the heavy modules that were imported, and the seconds taken."""
    heavy = "{'torch', 'diffusers', 'transformers', 'rich', 'huggingface_hub'}"
    probe = (
        "import sys\nfrom kgcli.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print(*({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_KG_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True, timeout=100)
    return done.stdout.split(), set(done.stderr.split()), time.perf_counter() - start


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kg gen", {"generate"}),
        ("kg generate --sch", {"--scheduler"}),
        ("kg generate --scheduler d", {"ddim", "dpm++"}),
        ("kg generate --model na", {"nano"}),
        ("kg generate --image nano/c", {"nano/car.png", "nano/cat.png"}),
        ("kg edit nano/o", {"nano/owl.png"}),
        ("kg align nano/al", {"nano/align", "nano/align_images"}),
        ("kg cp nano/t", {"nano/teapot.png"}),
        ("kg models pull kosmos-", {"kosmos-2"}),
        ("kg eval nano --device c", {"cpu", "cuda"}),
    ],
)
def test_names_are_completed_without_torch(words, expected):
    found, heavy, _ = complete(words)
    assert (set(found), heavy) == (expected, set())


def test_completion_is_installed_for_the_shell(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "COLUMNS": "80"}
    command = [sys.executable, "-m", "kgcli", "--show-completion"]
    done = subprocess.run(["bash", "-c", shlex.join(command) + "; true"], env=env, capture_output=True, text=True)
    assert "_KG_COMPLETE=complete_bash" in done.stdout, done.stderr
    command[-1] = "--install-completion"
    done = subprocess.run(["bash", "-c", shlex.join(command) + "; true"], env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "_KG_COMPLETE" in (tmp_path / ".bash_completions" / "kg.sh").read_text()

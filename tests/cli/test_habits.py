"""Every command of the table in docs/coming-from.md runs: to its end at small size, or to its check of the input."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
ROWS = re.findall(r"^\| .* \| (.*) \| `kg ?(.*)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)
COMMANDS = list(dict.fromkeys(command for _, command in ROWS))
SLOW = ("base lora my.yaml", "eval nano --num 4")  # trains and evaluates for minutes: their own tests run them
DOWNLOADS = ("models pull",)


def test_the_table_is_long_enough():
    assert len(ROWS) >= 20 and {"torchtune", "mflux", "litgpt", "Hugging Face"} <= {program for program, _ in ROWS}


@pytest.fixture
def prepared(kg, tmp_path):
    """The folder with the files that the table's rows name."""
    assert kg("cp", "smoke/lora", "my.yaml").code == 0
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return tmp_path


@pytest.mark.parametrize("command", [one for one in COMMANDS if one not in SLOW and not one.startswith(DOWNLOADS)])
def test_a_command_of_the_table_runs(kg, prepared, command):
    words = shlex.split(command)
    if words[0] == "cp":
        (prepared / "my.yaml").unlink()
    if words[0] in ("generate", "edit") and "-h" not in words:
        words += ["--steps", "1"] if "--steps" not in words and "--num-inference-steps" not in words else []
        words += ["-q"]
    if words[0] == "inspect" or "--from" in words:
        assert kg("generate", "a cat", "-s", "1", "--steps", "1", "-o", "cat.png").code == 0
    if "--resume" in words:  # nothing to resume is the answer here
        assert kg(*words).code == 3
        return
    done = kg(*words)
    assert "Traceback" not in done.err
    if "--dry-run" in words or words[0] == "base":
        # The smoke recipe starts from a base that only training makes: its absence is named, with the command.
        assert done.code in (0, 3), done.err
    elif "--show-completion" in words:
        assert done.code in (0, 1)  # 1: this process was started by no shell that typer knows
    else:
        assert done.code == 0, done.err
        assert done.out


@pytest.mark.parametrize("command", [*SLOW, *(one for one in COMMANDS if one.startswith(DOWNLOADS))])
def test_the_options_of_a_long_command_exist(kg, command):
    words = [word for word in shlex.split(command) if word.startswith("-")]
    shown = kg(*shlex.split(command)[:2], "--help")
    assert shown.code == 0 and all(word in shown.out for word in words)


def test_the_python_of_the_page_runs():
    import kgcli

    (code,) = re.findall(r"`(kgcli\.load.*)`", PAGE.read_text("utf-8"))
    images = eval(code, {"kgcli": kgcli})
    assert [image.size for image in images] == [(128, 128)] * 3

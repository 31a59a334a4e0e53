"""The shell: one model for many lines, settings per line, and errors that do not end it."""

import io
import json
import os
import sys

import pytest
from PIL import Image

from kgcli.cli.live.shell import parse_line
from kgcli.errors import UsageError
from kgcli.inference.metadata import read_metadata


@pytest.fixture
def shell(kg, tiny_model, monkeypatch):
    """Run `kg shell` on lines."""

    def run(*lines, flags=("-s", 1)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return kg("shell", "--model", tiny_model, *flags)

    return run


def test_each_line_gives_the_image_of_its_command(shell, kg, tiny_model, tmp_path, cat):
    done = shell("a cat -o a.png", f"a <image:{cat}> --steps 3 -s 7 -W 32 -o b.png", f":edit {cat} add a hat -o c.png")
    assert (done.code, done.lines) == (0, ["a.png", "b.png", "c.png"])
    assert kg("generate", f"a <image:{cat}>", "--steps", 3, "-s", 7, "-W", 32, "--model", tiny_model,
              "-o", "same.png").code == 0  # fmt: skip
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert kg("edit", cat, "add a hat", "-s", 1, "--model", tiny_model, "-o", "edit.png").code == 0
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "edit.png").read_bytes()


def test_settings_stay_until_they_are_unset(shell, tmp_path):
    done = shell(":set steps 3", "a cat -o a.png", "a cat --steps 4 -o b.png", ":set", ":unset steps", "a cat -o c.png")
    assert done.code == 0 and "num_inference_steps 3" in done.err
    assert [read_metadata(tmp_path / f"{name}.png")["steps"] for name in "abc"] == [3, 4, 2]


def test_lines_may_be_json(shell, tmp_path):
    line = json.dumps({"prompt": "a cat", "num_images": 2, "steps": 1, "out": "a.png"})
    assert shell(line, flags=()).lines == ["a-1.png", "a-2.png"]
    assert Image.open(tmp_path / "a-2.png").size == (16, 16)


def test_errors_point_at_their_column_and_the_next_line_goes_on(shell, tmp_path):
    done = shell(
        "a <image:missing.png> -o a.png", ":nothing", "a cat --steps 0", "", "a cat -o b.png", ":quit", "a dog"
    )
    assert done.code == 6 and done.lines == ["b.png"]
    assert "column 3" in done.err and "  a <image:missing.png>\n    ^" in done.err
    assert ":help lists all" in done.err and "--steps is 0" in done.err and "3 of the lines failed" in done.err


@pytest.mark.parametrize("entry", ['{"seed": 1}', '{"prompt": 3}', '{"prompt": null}'])
def test_an_edit_without_an_instruction_is_refused_and_the_next_line_goes_on(shell, cat, entry):
    done = shell(f":edit {cat} {entry}", "a cat -o b.png")
    assert done.code == 6 and done.lines == ["b.png"]
    assert "error: the instruction has no text" in done.err and "1 of the lines failed" in done.err


def test_names_no_file_can_have_and_bytes_that_are_no_text_are_refused_in_their_line(kg, tiny_model, monkeypatch):
    """Each was an error that ended the session."""
    lines = (
        f"a <image:{'a' * 251}.png>",  # with the suffix of a recipe it is longer than a name can be
        f"a cat -o {'b' * 250}{{prompt}}.png",
        f"a cat -n 2 -o {'b' * 251}.png",
        f"a cat -o {'b' * 251}.jpg",  # its metadata file is
        "a cat -o b.png",
    )
    data = b"a \xff cat -o a.png\n" + "\n".join(lines).encode() + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
    done = kg("shell", "--model", tiny_model, "-s", 1)
    assert done.code == 6 and done.lines == ["b.png"], done.err
    assert done.err.count("error: ") == 6 and "5 of the lines failed" in done.err
    assert "column 3: this character is not text" in done.err and done.err.count("the name is too long") == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --stepz 3", "no setting --stepz"),
        ("a cat --steps", "--steps needs a value"),
        ("a cat -n 1 --num-images 2", "given twice"),
        ("[1]", None),
        ("{1}", "the line"),
    ],
)
def test_wrong_lines(line, message):
    if message is None:
        assert parse_line(line) == {"prompt": line}
    else:
        with pytest.raises(UsageError, match=message):
            parse_line(line)


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("a cat", {"prompt": "a cat"}),
        ("a red-hot cat -- or two", {"prompt": "a red-hot cat -- or two"}),
        ("a cat --guidance-scale=2 -W 16", {"prompt": "a cat", "guidance_scale": "2", "width": "16"}),
        (
            "<image:-1> on <image:-2> --image a b.png --image c.png",
            {"prompt": "<image:-1> on <image:-2>", "images": ["a b.png", "c.png"]},
        ),
        (
            "a cat --negative-prompt low quality -s 3",
            {"prompt": "a cat", "negative_prompt": "low quality", "seed": ["3"]},
        ),
    ],
)
def test_settings_follow_the_prompt(line, entry):
    assert parse_line(line) == entry


@pytest.mark.parametrize("line", [":set steps 0", ":set prompt a", ":set stepz 3", ":set steps", ":unset steps"])
def test_wrong_settings_are_refused_at_once(shell, line):
    done = shell(line)
    assert done.code == 6 and done.err.startswith("error: ")


@pytest.mark.slow
def test_a_terminal_gets_a_prompt_and_keeps_a_history(tiny_model, tmp_path):
    import pty
    import subprocess
    from pathlib import Path

    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kgcli", "shell", "--model", str(tiny_model), "-s", "1"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path) as process:
        os.close(theirs)
        seen = b""
        while b"kg> " not in seen:
            seen += os.read(ours, 1000)
        os.write(ours, b"a cat -o a.png\n")
        while seen.count(b"kg> ") < 2 or not (tmp_path / "a.png").exists():
            seen += os.read(ours, 1000)
        os.write(ours, b"\x04")
        while process.poll() is None:
            try:
                seen += os.read(ours, 1000)
            except OSError:
                break
        assert process.wait(30) == 0
    os.close(ours)
    assert b"loading the model" in seen and b"tiny is ready" in seen
    assert "a cat -o a.png" in (tmp_path / "cache/kgcli/shell_history").read_text()

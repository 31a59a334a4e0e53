"""Notes about prompts outside what a model was trained on: seldom, short, and never errors."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from kgcli.config import SamplingConfig
from kgcli.data.prompt import Prompt
from kgcli.inference.notes import count_subjects, notes_about
from kgcli.inference.request import edit_prompt
from kgcli.weights.folder import open_model
from kgcli.weights.words import WORDS_NAME

ROOT = Path(__file__).parents[2]
DEFAULT = SamplingConfig(width=128, height=128)


def notes(text, sampling=DEFAULT):
    return notes_about(Prompt.parse(text), sampling, open_model())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("an astronaut on the beach", "astronaut"),
        ("a cat riding a bicycle", "riding, bicycle"),
        ("one two alpha beta gamma delta epsilon zeta", "alpha, beta, gamma, delta, epsilon and 1 more"),
        ("a cat and a dog and a fox", "3 subjects"),
        ("a <image:a.png> and a <image:b.png> and a cat", "3 subjects"),
        ("a cat <image:a.png>, a dog <image:b.png> and an owl <image:c.png>", "3 subjects"),
        ("a https://example.com/cat.png in the snow", "is read as text"),
    ],
)
def test_a_prompt_outside_gets_one_note(text, words):
    (note,) = notes(text)
    assert words in note and "\n" not in note


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "A CAT, please!",
        "Show me the blue cat with red stripes next to an owl wearing sunglasses",
        "a cat <image:a.png> and a dog <image:b.png> in Minecraft",
        "<image:a.png> and <image:b.png>",
        "a <image:a.png|weight=0> and a cat and a dog",
        "look at a cat. <image:a.png> the cat in the snow. <image:b.png|weight=0> the same cat",
        "3 \\< 4",
        "",
    ],
)
def test_a_prompt_inside_gets_none(text):
    assert notes(text) == []


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (512, 512)])
def test_another_size_gets_a_note(size):
    (note,) = notes("a cat", SamplingConfig(width=size[0], height=size[1]))
    assert "128 x 128" in note and f"{size[0]} x {size[1]}" in note


def prompts_of_documents():
    """Yield the prompts of the shipped model in README.md and docs/: of `kg` and of Python."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        for line in re.findall(r"kg (?:generate|edit) [^\n#|`]*", text):
            if line.count('"') % 2 or "--model" in line or "--batch" in line:
                continue
            words = [word for word in shlex.split(line.replace("\\\n", " "))[1:] if not word.startswith("-")]
            if len(words) > 1:
                yield edit_prompt(words[1], words[2]) if words[0] == "edit" and len(words) > 2 else words[1]
        yield from re.findall(r'model\.generate\("([^"]*)"', text)


def test_the_documents_examples_get_none():
    found = [text for text in prompts_of_documents() if "<" in text or " " in text]
    assert len(found) > 2
    assert {text: notes(text) for text in found} == {text: [] for text in found}


def test_subjects_are_counted_without_a_list():
    assert count_subjects(Prompt.parse("a cat <image:a.png> and a <image:b.png>"), None) == 2


def test_a_model_without_a_list_gets_no_notes(tiny_model):
    prompt = Prompt.parse("an astronaut <image:a.png>")
    assert notes_about(prompt, SamplingConfig(width=64, height=8), open_model(str(tiny_model))) == []


def test_notes_are_on_stderr_and_not_with_quiet(kg, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / WORDS_NAME).write_text(json.dumps({"nouns": ["cat"], "other": ["a"], "sizes": [[8, 8]]}))
    flags = ["--model", "model", "-s", "1", "--overwrite", "-o", "a.png"]
    loud = kg("generate", "a dragon", *flags)
    assert (loud.code, loud.lines) == (0, ["a.png"])
    assert [line.split(":")[0] for line in loud.err.splitlines()] == ["note", "note"] and "dragon" in loud.err
    assert kg("generate", "a dragon", "-q", *flags).err == ""
    (tmp_path / "model" / WORDS_NAME).write_text("{")
    damaged = kg("generate", "a dragon", *flags)
    assert damaged.code == 0 and WORDS_NAME in damaged.err and "it is ignored" in damaged.err

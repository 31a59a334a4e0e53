"""The list of known words in a model folder: read, checked, and equal to the world's for the shipped model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from transformers import CLIPTokenizer

from kgcli.data.sources.world import draw
from kgcli.errors import IncompatibleError, KgError
from kgcli.weights.folder import open_model
from kgcli.weights.shipped import DEFAULT_MODEL
from kgcli.weights.words import MAX_BYTES, WORDS_NAME, read_words
from kgcli.world import text
from kgcli.world.spec import draw_spec
from kgcli.world.tables import BASE_ONLY_NOUNS, SEEN_NOUNS, SHADES, SHAPES, SIZE
from kgcli.world.words import known_words

NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]


def test_the_shipped_list_is_the_worlds():
    model = open_model()
    size = model.cfg.generation.size[0]
    shipped = json.loads((DEFAULT_MODEL / WORDS_NAME).read_text("utf-8"))
    assert shipped == known_words(size, model.cfg.max_subjects)


def test_all_words_of_the_worlds_prompts_are_known():
    known = read_words(DEFAULT_MODEL)
    rng = np.random.default_rng(0)
    for _ in range(300):
        specs = [draw_spec(rng, NOUNS, num_subjects=number, accessory=0.5, styled=0.5) for number in (1, 1, 2, 3)]
        pieces = [
            text.caption(specs[2], rng),
            text.short_caption(specs[3], rng, shades=1.0),
            text.edit(specs[0], rng)[1],
            *text.as_typed(text.compositional(specs[2], rng, drop=bool(rng.random() < 0.5)), rng),
            *text.story(specs[:2], rng),
        ]
        for piece in pieces:
            assert known.unknown(piece or "") == []


def test_captions_of_the_world_fit_the_shipped_text_encoder_to_their_last_word():
    tokenizer = CLIPTokenizer.from_pretrained(DEFAULT_MODEL / "decoder" / "tokenizer")
    assert [len(tokenizer(word, add_special_tokens=False).input_ids) for word in (*SHADES, *SHAPES)] == [1] * 8
    kinds = ("one", "two", "three", "text", "compositional", "edit")
    captions = [draw({kind: 1.0}, 0, index, SIZE).caption for kind in kinds for index in range(40)]
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    assert max(lengths) <= tokenizer.model_max_length
    assert sum(length > 24 for length in lengths) > 20


@pytest.mark.parametrize("words", ["horse", "astronaut", "two dogs", "a cat riding a bike"])
def test_other_words_are_not_known(words):
    assert read_words(DEFAULT_MODEL).unknown(words)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"nouns": "cat"}',
        b'{"nouns": [""]}',
        b'{"nouns": ["cat"], "verbs": ["run"]}',
        b'{"nouns": ["cat"], "num_subjects": 0}',
        b'{"nouns": ["cat"], "sizes": [[64]]}',
        b'{"nouns": ["cat"], "sizes": [[64, 100000]]}',
        json.dumps({"nouns": ["cat" * 100]}).encode(),
        json.dumps({"nouns": ["cat"] * 5001}).encode(),
        b" " * (MAX_BYTES + 1),
    ],
)
def test_a_damaged_list_is_one_line(tmp_path, content):
    (tmp_path / WORDS_NAME).write_bytes(content)
    with pytest.raises(KgError) as raised:
        read_words(tmp_path)
    assert WORDS_NAME in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_may_have_no_list(tmp_path, tiny_model):
    assert read_words(tmp_path) is None and open_model(str(tiny_model)).words is None


def test_models_show_lists_what_a_model_knows(kg, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = kg("models", "show", "nano")
    for words in ("cat, dog, fox", "on the beach", "in Minecraft", "sunglasses", "at most 2", "128 x 128 pixels"):
        assert words in shown.out
    assert json.loads(kg("models", "show", "--json").out)["knows"]["num_subjects"] == 2


def test_models_show_of_a_model_without_a_list(kg, tiny_model):
    assert "nouns" not in kg("models", "show", tiny_model).out
    assert json.loads(kg("models", "show", tiny_model, "--json").out)["knows"] is None


def test_models_show_names_a_damaged_list(kg, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / WORDS_NAME).write_text('{"nouns": 3}')
    done = kg("models", "show", "model")
    assert done.code == IncompatibleError.exit_code and "nouns" in done.err

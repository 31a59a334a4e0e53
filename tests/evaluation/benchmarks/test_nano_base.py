"""Laws of `kg eval nano FOLDER`: a U-Net is measured by itself, from text alone."""

import json

import pytest
from PIL import Image

from kgcli.evaluation.benchmarks.nano_base import PROTOCOL
from kgcli.weights.shipped import DEFAULT_MODEL

DECODER = DEFAULT_MODEL / "decoder"


@pytest.mark.slow
def test_a_decoder_is_asked_for_one_and_for_two_subjects_by_their_words(kg, tmp_path):
    done = kg("eval", "nano", DECODER, "--num", "4", "--json", "--grid", "grid.png")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["protocol"] == PROTOCOL and report["generation"]["width"] == 128
    rows = {(row["task"], row["measure"], row["painter"]): row for row in report["rows"]}
    assert {task for task, _, _ in rows} == {"text", "text_pair"}
    assert {column for _, _, column in rows} == {"base", "true", "vae", "other"}
    assert rows["text", "noun", "true"]["value"] == 1.0 > rows["text", "noun", "other"]["value"]
    for column in ("base", "other"):
        row = rows["text_pair", "nouns", column]
        assert row["low"] <= row["value"] <= row["high"]
    assert rows["text_pair", "nouns", "base"]["value"] >= 0.5 > rows["text_pair", "nouns", "other"]["value"]
    assert "two subjects from text: 4 images, base" in done.err
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > grid.height > 100


def test_a_folder_that_is_no_decoder_is_refused_before_torch_loads(kg, tmp_path, without_engine):
    ran = kg("eval", "nano", "nowhere")
    assert ran.code == 3 and "nowhere has no unet/config.json" in ran.err


def test_a_model_folder_is_sent_to_its_flag(kg, without_engine):
    ran = kg("eval", "nano", DEFAULT_MODEL)
    assert ran.code == 2 and f"{DEFAULT_MODEL} is a model folder; give it by --model" in ran.err.replace("\n", " ")


@pytest.mark.parametrize("flag", ["--model", "--before"])
def test_a_folder_is_evaluated_by_itself(kg, without_engine, flag):
    ran = kg("eval", "nano", DECODER, flag, "nano")
    assert ran.code == 2 and f"leave out {flag}" in ran.err

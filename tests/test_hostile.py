"""Inputs that crashed, hung or misled: each gets its documented exit code and one line."""

import json
import shutil
import struct
import time

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from kgcli.data.prompt import Prompt
from kgcli.errors import IncompatibleError, KgError, MissingError
from kgcli.recipe import load_recipe
from kgcli.weights.folder import check_safetensors, open_model
from kgcli.weights.shipped import shipped_names

RECIPE = {"stage": "align", "output_dir": "runs/x", "init_from": {"model": "m", "text": "t"}, "steps": 4}
RECIPE |= {"data": {"kinds": {"text": 1.0}, "batch_size": 8}, "optim": {"lr": 1.0e-3}}
BOMB = "\nparts:\n  a0: &a0 {x: [1,1,1,1,1,1,1,1,1,1]}\n" + "".join(
    f"  a{i}: &a{i} {{x: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)
CANNOT_RUN = {
    "steps": ["2024-99-99", "9" * 5000, "0", "-1", ".nan", "1.5", "10000000000"],
    "optim.lr": [".nan", ".inf", "0", "-1", "1e999"],
    "ema_decay": ["5", "-0.1", ".nan"],
    "image_size": ["0", "-64", "100000"],
    "output_dir": ["''", '"a\\0b"'],
    "data.batch_size": ["1000000000", "0"],
    "data.kinds": ["{}", "{text: 0}", "{text: -1}", "{nothing: 1}", "{text: .inf}"],
    "seed": ["-1", "4194304"],
    "stage": ["nothing", "''", "5"],
    "optim.betas": ["[1, 2]", "[0.9]"],
    "model": ["{mllm: {num_heads: 0}}", "{vision: {patch_size: 0}}", "{mllm: {width: 99999999999}}"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in CANNOT_RUN.items() for value in values])
def test_validate_refuses_what_cannot_run(kg, tmp_path, key, value, without_engine):
    text = json.dumps(RECIPE)
    (tmp_path / "good.yaml").write_text(text)
    changed = json.loads(text)
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = "PLACEHOLDER"
    (tmp_path / "bad.yaml").write_text(json.dumps(changed).replace('"PLACEHOLDER"', value))
    assert kg("validate", "good.yaml").code == 0
    done = kg("validate", "bad.yaml")
    assert done.code == 2 and "unexpected" not in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_bomb_of_aliases_is_refused_by_validate_and_by_training(kg, tmp_path, without_engine):
    head = "stage: align\noutput_dir: x\nsteps: 1\ndata: {kinds: {text: 1}, batch_size: 1}"
    (tmp_path / "bomb.yaml").write_text(head + BOMB)
    for command in (("validate", "bomb.yaml"), ("align", "bomb.yaml")):
        done = kg(*command)
        assert done.code == 2 and "more than" in done.err


def test_shipped_recipes_are_valid(kg, without_engine):
    names = [name for name in shipped_names() if not name.endswith(".png")]
    assert kg("validate", *names).code == 0


def image_with(record, path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("kgcli", record, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)


@pytest.mark.parametrize("record", ["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", "5", '{"prompt": NaN}', "{}"])
def test_hostile_metadata_are_damaged_metadata(kg, tmp_path, record, without_engine):
    image_with(record, tmp_path / "a.png")
    for command in (("inspect", "a.png"), ("generate", "--from", "a.png")):
        done = kg(*command)
        assert done.code == 3 and len(done.err.splitlines()) == 1 and "unexpected" not in done.err


@pytest.mark.parametrize(
    "line",
    [
        {"out": "a\0b.png"},
        {"out": "z" * 300 + ".png"},
        {"out": "~nosuchuser/a.png"},
        {"out": "a\ud800.png"},
        {"prompt": "\ud800"},
        {"seed": [1, 99999999999999999999999]},
        {"seed": [1, -1]},
        {"seed": 2**63 - 1, "num_images": 2},
        {"images": ["a\0.png"]},
        {"prompt": "<image:~nosuchuser/a.png>"},
        {"guidance_scale": float("nan")},
        {"prompt": "_" * 40_000},
        {"width": 10**15},
    ],
    ids=str,
)
def test_one_bad_line_never_stops_the_others(kg, tmp_path, tiny_model, line):
    good = [{"prompt": "a dog", "out": f"{name}.png", "seed": 1} for name in ("first", "last")]
    lines = [good[0], {"prompt": "a cat", **line}, good[1]]
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = kg("generate", "--batch", "batch.jsonl", "--model", tiny_model)
    assert done.code == 6 and done.lines == ["first.png", "last.png"], done.err
    assert "line 2: " in done.err and "unexpected" not in done.err


def test_prompts_of_any_length_take_time_in_proportion():
    seconds = []
    for length in (8_000, 32_000):
        start = time.process_time()
        Prompt.parse("_" * (length - 30) + "<image:" + " " * 10 + "a.png>")
        seconds.append(time.process_time() - start)
    assert seconds[1] < 12 * max(seconds[0], 0.002)


DEEP: list = []
for _ in range(60):
    DEEP = [DEEP]
HEADERS = {
    "short offsets": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    "reversed": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    "negative": {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "huge": {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
    "text": {"w": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    "list": {"w": [1]},
    "deep": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": DEEP}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_damaged_files(tmp_path, name):
    header = json.dumps(HEADERS[name]).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(MissingError, match="is damaged"):
        check_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("part", ["vision", "mllm", "resampler", "aligner"])
def test_a_model_without_heads_is_refused(tiny_model, tmp_path, part):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config[part]["num_heads"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match="num_heads"):
        open_model(str(folder))


def test_a_cpu_has_no_number(kg, tiny_model):
    done = kg("generate", "a cat", "--model", tiny_model, "--device", "cpu:7", "-s", "1")
    assert done.code == 4 and "there is only one cpu device; write --device cpu" in done.err


def test_names_that_are_not_utf8_work_or_are_refused_before_generation(kg, tiny_model, tmp_path, cat, without_engine):
    cat.rename(tmp_path / "caf\udce9.png")
    done = kg("generate", "a <image:-1>", "--image", "caf\udce9.png", "--model", tiny_model)
    assert done.code == 2 and "caf\\xe9.png is a file name that is not UTF-8" in done.err


def test_an_image_that_is_missing_suggests_the_nearest(kg, tiny_model, cat, tmp_path, monkeypatch, without_engine):
    done = kg("generate", "a <image:Cat.PNG>", "--model", tiny_model)
    assert done.code == 3 and "did you mean cat.png?" in done.err
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = kg("generate", "a <image:~/cat.png>", "--model", tiny_model)
    assert done.code == 3 and f"there is no folder {tmp_path / 'home'}" in done.err


def test_a_home_folder_is_found(kg, tiny_model, cat, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ("-s", 1, "--model", tiny_model)
    assert kg("generate", "a <image:~/cat.png>", "-o", "a.png", *asked).code == 0
    assert kg("generate", "a <image:-1>", "--image", "~/cat.png", "-o", "b.png", *asked).code == 0
    assert np.array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))


def test_a_link_in_a_prompt_gets_a_note(kg, tiny_model):
    done = kg("generate", "a cat as in https://x.org/cat.png", "--model", tiny_model, "-s", 1)
    assert done.code == 0 and "download it and write <image:FILE>" in done.err


def test_every_error_of_a_recipe_is_one_of_ours(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\0")
    with pytest.raises(KgError):
        load_recipe(str(tmp_path / "a.yaml"))

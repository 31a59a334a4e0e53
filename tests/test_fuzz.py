"""Every input ends in a result or in one of our errors: random, mutated and hostile ones, from fixed seeds.

The fast tests take 2,000 cases in all; those marked slow 10^5 prompts, 10^4 images and thousands of files.
"""

import io
import json
import random
import shutil
import string

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scored_run import make_subject_run

from kgcli.data.images import decode_image
from kgcli.data.prompt import Prompt
from kgcli.errors import KgError
from kgcli.evaluation.report.compare import compare, open_runs
from kgcli.evaluation.report.page import build_page
from kgcli.evaluation.run.folder import RunFolder
from kgcli.inference.metadata import read_metadata, read_parameters
from kgcli.inference.replay import read_replay
from kgcli.recipe import load_recipe
from kgcli.weights.folder import open_model

PIECES = [
    *("<image:", "<i>", "<image>", ">", "|", ",", "=", "weight=", "fit=", "mask=", "0.8", "nan", "crop", "-1", "-0"),
    *("<lora:x:1>", "<cat.png>", "https://x/y.png", "a.png", "~", "\0", "\ud800", "\u2028", "\n", "\u00e9", " "),
    *("\\", "<", "\U0001f600"),
]
HOSTILE = [
    *(None, True, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, "", "a", "..", "/", "\0", "\ud800", "x" * 5000),
    *([], [[]], {}, {"": {}}, [None], ["a", 1], "1e999", "nan", "../../etc/passwd", "~root", "C:\\x", "\u202e"),
]


def counts(fast, slow):
    """How many cases each kind of run takes."""
    return pytest.mark.parametrize(
        "num", [pytest.param(fast, id="fast"), pytest.param(slow, id="slow", marks=pytest.mark.slow)]
    )


def ends_well(call, *given):
    """Run something that may refuse; the message of a refusal is one line that can be printed."""
    try:
        return call(*given)
    except KgError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 3000, text[:500]
        text.encode("utf-8", "backslashreplace")
        return None


def mutate(value, rng):
    """A JSON value with one place changed: replaced, left out, doubled or put under another name."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        chance = rng.random()
        if chance < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if chance < 0.2:
            return {**value, key + rng.choice(["x", "_", " "]): value[key]}
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:place] + value[place + 1 :]
        if rng.random() < 0.1:
            return [*value, value[place]]
        return [*value[:place], mutate(value[place], rng), *value[place + 1 :]]
    return rng.choice(HOSTILE)


def damage(data, rng):
    """Bytes with some of them changed, cut off, left out or doubled."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if not data:
            break
        place = rng.randrange(len(data))
        chance = rng.random()
        if chance < 0.6:
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif chance < 0.75:
            del data[place : place + rng.randint(1, 64)]
        elif chance < 0.9:
            data[place:place] = data[place : place + rng.randint(1, 64)]
        else:
            del data[place:]
    return bytes(data)


def write_text(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


@counts(900, 100_000)
def test_prompts(num):
    rng = random.Random(0)
    for _ in range(num):
        length = rng.randint(0, 30)
        text = "".join(
            rng.choice(PIECES) if rng.random() < 0.7 else rng.choice(string.printable) for _ in range(length)
        )
        prompt = ends_well(Prompt.parse, text)
        if prompt is not None:
            assert Prompt.parse(prompt.format()) == prompt


def seeds_of_images():
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    for kind, image, options in (
        ("PNG", pixels, {}),
        ("PNG", pixels.convert("P"), {"transparency": 0}),
        ("PNG", pixels.convert("I;16"), {}),
        ("JPEG", pixels, {"exif": exif, "icc_profile": b"x" * 200}),
        ("JPEG", pixels.convert("CMYK"), {}),
        ("WEBP", pixels, {}),
        ("GIF", pixels, {"save_all": True, "append_images": [pixels]}),
        ("BMP", pixels, {}),
        ("TIFF", pixels, {"compression": "tiff_lzw"}),
        ("PPM", pixels, {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


@counts(800, 10_000)
def test_images(num):
    rng = random.Random(1)
    seeds = list(seeds_of_images())
    for _ in range(num):
        image = ends_well(decode_image, damage(rng.choice(seeds), rng))
        assert image is None or image.mode == "RGB"


@pytest.fixture(scope="module")
def drawn(tiny_model, tmp_path_factory):
    """The metadata of an image as it is written."""
    from kgcli.inference.metadata import describe
    from kgcli.inference.request import make_request

    model = open_model(str(tiny_model))
    return describe(make_request(model, "a cat", seed=3), model, "cpu", "float32")


@counts(120, 3_000)
def test_metadata(num, drawn, tiny_model, tmp_path):
    rng = random.Random(2)
    model = open_model(str(tiny_model))
    for index in range(num):
        text = json.dumps(mutate(drawn, rng))
        if index % 4 == 3:
            text = damage(text.encode(), rng).decode("latin-1")
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("kgcli", text.replace("\0", ""), zip=index % 2 == 0)
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
        if index % 8 == 7:
            (tmp_path / "a.png").write_bytes(damage((tmp_path / "a.png").read_bytes(), rng))
        ends_well(read_metadata, tmp_path / "a.png")
        ends_well(read_parameters, tmp_path / "a.png")
        ends_well(read_replay, tmp_path / "a.png", model, [], True)


@counts(60, 2_000)
def test_model_folders(num, tiny_model, tmp_path):
    rng = random.Random(3)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for index in range(num):
        path = rng.choice(files)
        content = path.read_bytes()
        if path.suffix == ".json" and index % 2:
            write_text(path, json.dumps(mutate(json.loads(content), rng)))
        else:
            path.write_bytes(damage(content[:2000], rng) + content[2000:])
        ends_well(open_model, str(folder))
        path.write_bytes(content)


@counts(80, 500)
def test_recipes(num, tmp_path):
    rng = random.Random(4)
    recipe = load_recipe("nano/instruct").model_dump(mode="json")
    for index in range(num):
        text = json.dumps(mutate(recipe, rng))
        write_text(tmp_path / "a.yaml", damage(text.encode(), rng).decode("latin-1") if index % 4 == 3 else text)
        ends_well(load_recipe, str(tmp_path / "a.yaml"))


@counts(40, 500)
def test_plans_and_scores(num, tmp_path):
    rng = random.Random(5)
    make_subject_run(tmp_path / "run", subjects=("nano_cat", "nano_dog"), num_images=1, size=16)
    originals = {name: (tmp_path / "run" / name).read_text("utf-8") for name in ("plan.json", "scores.json")}
    for index in range(num):
        name = rng.choice(sorted(originals))
        text = json.dumps(mutate(json.loads(originals[name]), rng))
        write_text(tmp_path / "run" / name, damage(text.encode(), rng).decode("latin-1") if index % 4 == 3 else text)
        ends_well(RunFolder.open, tmp_path / "run")
        runs = ends_well(open_runs, [tmp_path / "run"])
        if runs is not None and index % 5 == 0:
            ends_well(compare, runs)
            ends_well(build_page, runs)
        write_text(tmp_path / "run" / name, originals[name])

"""Metadata of generated images, and their replay."""

from __future__ import annotations

import json
import re

import pytest
from PIL import ExifTags, Image

from kgcli.inference.metadata import read_metadata, read_parameters, to_parameters


@pytest.fixture
def generated(kg, tiny_model, cat, tmp_path):
    flags = ["-s", "42", "-g", "2.5", "--negative-prompt", "low \\< quality", "-o", "out.png", "--scheduler", "euler"]
    done = kg("generate", "a <image:cat.png|weight=0.5> in Minecraft", "--model", tiny_model, *flags)
    assert done.code == 0, done.err
    return tmp_path / "out.png"


def test_png_chunks_hold_the_metadata(generated, tiny_model):
    info = Image.open(generated).info
    assert info["parameters"] == to_parameters(read_metadata(generated))
    prompt, negative, rest = info["parameters"].split("\n")
    assert (prompt, negative) == ("a <image:cat.png> in Minecraft", "Negative prompt: low < quality")
    assert rest.startswith("Steps: 2, Sampler: Euler, CFG scale: 2.5, Seed: 42, Size: 16x16, Model hash: ")
    metadata = json.loads(info["kgcli"])
    assert metadata["prompt"] == "a <image:cat.png|weight=0.5> in Minecraft"
    assert [image["name"] for image in metadata["images"]] == ["cat.png"]
    assert len(metadata["model"]["sha256"]) == len(metadata["decoder"]["sha256"]) == 64


def test_no_folder_of_the_user_is_in_the_file(generated, kg, tiny_model, tmp_path):
    kg("generate", f"a <image:{tmp_path}/cat.png>", "--model", tiny_model, "-o", "b.png")
    for path in (generated, tmp_path / "b.png"):
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(tmp_path) not in json.dumps(read_metadata(path))


def test_replay_gives_the_same_bytes(generated, kg, tiny_model, tmp_path):
    assert kg("generate", "--from", "out.png", "--model", tiny_model, "-o", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == generated.read_bytes()


def test_flags_change_a_replay(generated, kg, tiny_model, tmp_path):
    kg("generate", "--from", "out.png", "--model", tiny_model, "-o", "again.png", "-s", "43", "--steps", "3")
    metadata = read_metadata(tmp_path / "again.png")
    assert (metadata["seed"], metadata["steps"], metadata["guidance_scale"]) == (43, 3, 2.5)


def test_replay_finds_the_input_by_its_hash(generated, kg, tiny_model, cat, tmp_path):
    replay = ["generate", "--from", "out.png", "--model", tiny_model, "-o", "again.png"]
    cat.rename(tmp_path / "moved.png")
    done = kg(*replay)
    assert done.code == 3 and "cat.png" in done.err and "--image" in done.err
    Image.new("RGB", (3, 3)).save(cat)
    assert "is another image" in kg(*replay).err
    assert kg(*replay, "--image", "moved.png").code == 0
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(generated).tobytes()


def test_replay_finds_the_examples(kg, tiny_model, tmp_path):
    assert kg("generate", "a <image:nano/cat.png>", "--model", tiny_model, "-o", "out.png").code == 0
    done = kg("generate", "--from", "out.png", "--model", tiny_model, "-o", "again.png")
    assert done.code == 0, done.err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_replay_refuses_another_model_unless_it_was_chosen(generated, tiny_model, tmp_path):
    from dataclasses import replace

    from kgcli.errors import IncompatibleError
    from kgcli.inference.replay import read_replay
    from kgcli.weights.folder import open_model

    other = replace(open_model(str(tiny_model)), decoder="elsewhere/decoder")
    with pytest.raises(IncompatibleError, match="give --model"):
        read_replay(generated, other, [], chosen=False)
    assert read_replay(generated, other, [str(tmp_path / "cat.png")], chosen=True).line["seed"] == 42


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_have_exif_and_a_file_beside(kg, tiny_model, cat, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    kg("generate", "a \u732b <image:cat.png>", "--model", tiny_model, "-s", "1", "-o", path)
    assert read_metadata(path)["seed"] == 1
    assert read_parameters(path) == to_parameters(read_metadata(path))
    assert kg("generate", "--from", path, "--model", tiny_model, "-o", f"again.{suffix}").code == 0
    assert (tmp_path / f"again.{suffix}").read_bytes() == path.read_bytes()
    (tmp_path / f"out.{suffix}.json").unlink()
    assert "a \u732b <image:cat.png>" in kg("inspect", path).out


def test_no_metadata_writes_none(kg, tiny_model, tmp_path):
    kg("generate", "a cat", "--model", tiny_model, "-o", "a.png", "--no-metadata")
    kg("generate", "a cat", "--model", tiny_model, "-o", "a.jpg", "--no-metadata")
    assert Image.open(tmp_path / "a.png").info == {}
    assert kg("inspect", "a.png").code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]


def test_inspect_prints_the_metadata(generated, kg, tiny_model):
    assert "seed: 42" in kg("inspect", "out.png").lines
    assert json.loads(kg("inspect", "out.png", "--json").out) == read_metadata(generated)
    assert "mllm.num_layers: 1" in kg("inspect", tiny_model).lines


@pytest.mark.parametrize("text", ["{", "[]", '{"prompt": 3}', '{"prompt": "<image:"}', '{"prompt": "a"}'])
def test_damaged_metadata_are_an_error(kg, tiny_model, tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("kgcli", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=chunks)
    done = kg("generate", "--from", "odd.png", "--model", tiny_model)
    assert done.code == 3 and "damaged" in done.err


# ---------------------------------------------------------------- the web UI's text, as the web UI reads it

PAIR = re.compile(r'\s*([\w ]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIGNS = ["plain", "my model, Seed: 99", 'say "hi"', "two\nlines", "v1: final", "with>sign", "\u732b", "dot.ted.v1"]


def settings_of(metadata):
    """The prompt and the settings of the last line, as the web UI takes them apart."""
    *lines, last = to_parameters(metadata).split("\n")
    values = {key: json.loads(value) if value[:1] == '"' else value for key, value in PAIR.findall(last)}
    return "\n".join(lines), values


@pytest.fixture
def metadata(generated):
    return read_metadata(generated) | {"negative_prompt": ""}


@pytest.mark.parametrize("name", SIGNS)
def test_names_of_models_are_quoted_where_they_would_end_too_early(metadata, name):
    metadata["model"]["name"] = name
    prompt, values = settings_of(metadata)
    assert prompt == "a <image:cat.png> in Minecraft"
    assert (values["Model"], values["Seed"]) == (name, "42") and values["Version"].startswith("kgcli ")


@pytest.mark.parametrize("name", SIGNS)
def test_names_of_loras_are_those_of_the_web_ui(metadata, name):
    lora = {"type": "lora", "name": f"{name}.safetensors", "sha256": "a" * 64, "autov3": "b" * 64, "scale": 0.7}
    metadata["adapters"] = [lora, {**lora, "name": "other.safetensors", "autov3": "c" * 64}]
    prompt, values = settings_of(metadata)
    tags = re.findall(r"<(\w+):([^>]+)>", prompt)[1:]
    mentioned = re.sub(r"[,:>\n]", "", name)  # as the web UI cleans a name
    assert tags == [("lora", f"{mentioned}:0.7"), ("lora", "other:0.7")]
    assert dict(pair.split(": ") for pair in values["Lora hashes"].split(", ")) == {
        mentioned: "b" * 12,
        "other": "c" * 12,
    }
    assert values["Seed"] == "42"


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-8"])
def test_comments_of_other_programs_are_read(tmp_path, encoding):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + "a \u732b\nSteps: 5".encode(encoding)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.jpg", exif=exif)
    assert read_parameters(tmp_path / "other.jpg") == "a \u732b\nSteps: 5"

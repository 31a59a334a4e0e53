"""Laws of `kg convert`: there and back bit for bit, usable at once, whole or not at all, in little memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageChops
from random_checkpoint import config_of, load_measured, run_measured, write_random

from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import KgError
from kgcli.weights.folder import open_model
from kgcli.weights.load import load_kosmosg
from kgcli.weights.published import convert as conversion
from kgcli.weights.published.checkpoint import ALIGN, INSTRUCT
from kgcli.weights.published.fairseq import read_checkpoint
from kgcli.weights.safetensors import read_weights

MANIFESTS = Path(__file__).parents[2] / "parity" / "fixtures"
MEMORY_RATIO = 1.2  # of the file's size
SMALL = {"scale": 4, "num_layers": 4}


@pytest.fixture
def published(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a published file."""
    conversion.to_published(tiny_model, tmp_path / "published.pt")
    return tmp_path / "published.pt"


def flags(tiny_model: Path) -> list[object]:
    return ["--spm", tiny_model / "tokenizer" / "sentencepiece.model", "--decoder", tiny_model / "decoder"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (read_weights(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- what is written


def test_a_converted_model_generates_the_same_image(kg, published, tiny_model, cat, tmp_path):
    done = kg("convert", published, "model", *flags(tiny_model), "--shard-size", "0.00001")
    assert done.code == 0, done.err
    assert done.lines == [
        "final (instruction tuning): 118 weights, 116 used and 2 not needed",
        "model",
    ]
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 1
    assert_same_weights(tmp_path / "model", tiny_model)
    assert open_model(str(tmp_path / "model")).cfg.special_ids == open_model(str(tiny_model)).cfg.special_ids
    for model, out in ((tiny_model, "a.png"), (tmp_path / "model", "b.png")):
        size = ["-W", "16", "-H", "16", "--steps", "2", "-g", "3", "--scheduler", "ddim", "-s", "1"]
        done = kg("generate", f"a <image:{cat}> in Minecraft", "--model", model, "-o", out, *size)
        assert done.code == 0, done.err
    images = [Image.open(tmp_path / name) for name in ("a.png", "b.png")]
    assert ImageChops.difference(*images).getbbox() is None


def test_the_way_back_gives_the_same_weights(kg, published, tiny_model, tmp_path):
    assert kg("convert", published, "model", *flags(tiny_model)).code == 0
    assert kg("convert", "--to", "published", "model", "back.pt").code == 0
    one, other = (read_checkpoint(tmp_path / name).weights for name in ("published.pt", "back.pt"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    content = torch.load(tmp_path / "back.pt", weights_only=False)  # as the published loader reads it
    assert {"args", "cfg", "model", "criterion", "optimizer_history", "task_state", "extra_state"} <= content.keys()
    assert content["cfg"]["model"].decoder_layers == 1


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16), (None, torch.float32)]
)
def test_precision_is_as_requested_or_as_in_the_file(published, tmp_path, name, dtype):
    source = conversion.open_checked(published, tmp_path / "model")
    conversion.to_folder(source, tmp_path / "model", dtype=name)
    weights = read_weights(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert load_kosmosg(tmp_path / "model", dtype=dtype).mllm.embedding.weight.dtype == dtype


def test_the_dictionary_gives_the_ids(kg, published, tiny_model, tmp_path):
    spm = tiny_model / "tokenizer" / "sentencepiece.model"
    pieces = list(Tokenizer.read(spm)._piece_of.values())[::-1]  # another order than SentencePiece's own
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), "utf-8")
    assert kg("convert", published, "model", "--dict", "dict.txt", "--spm", spm).code == 0
    tokenizer = Tokenizer.load(tmp_path / "model" / "tokenizer")
    (first,) = tokenizer.encode(pieces[0].replace("\u2581", " ")) if len(pieces[0]) == 1 else (4,)
    assert first == 4
    assert tokenizer.special_ids == open_model(str(tiny_model)).cfg.special_ids


def test_the_model_card_states_every_licence(kg, published, tmp_path):
    assert kg("convert", published, "model").code == 0
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    for words in ("license: mit", "MIT", "CLIP ViT-L/14", "CreativeML OpenRAIL-M", "published.pt", "arXiv:2310.02992"):
        assert words in card
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert config["decoder"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_decoders_deleted_id_becomes_its_successor(kg, published, tmp_path):
    assert kg("convert", published, "model", "--decoder", "runwayml/stable-diffusion-v1-5").code == 0
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in (tmp_path / "model" / "config.json").read_text("utf-8")


# ---------------------------------------------------------------- what is refused


def test_a_file_that_would_run_code_leaves_nothing_behind(kg, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    done = kg("convert", "evil.pt", "model")
    assert (done.code, done.out) == (4, "")
    assert done.err.count("\n") == 1 and "evil.pt is refused: it needs " in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nowhere.pt", "model"], 3, "there is no checkpoint nowhere.pt"),
        (["published.pt", "model", "--to", "onnx"], 2, "--to is onnx"),
        (["published.pt", "model", "--dtype", "int8"], 2, "--dtype is int8"),
        (["published.pt", "model", "--dict", "dict.txt"], 2, "--dict alone"),
        (["published.pt", "model", "--spm", "nowhere.model"], 3, "nowhere.model is damaged"),
        (["published.pt", "model", "--decoder", "./nowhere"], 3, "there is no decoder folder ./nowhere"),
        (["published.pt", "published.pt"], 2, "is a file, not a model folder"),
        (["published.pt", "full"], 2, "already exists"),
        (["published.pt", "full", "--overwrite"], 2, "is not a model folder, so --overwrite does not apply"),
        (["--to", "published", "nowhere", "back.pt"], 3, "there is no model folder nowhere"),
        (["--to", "published", "full", "published.pt"], 3, "there is no config.json"),
        (["--to", "published", "full", "back.pt", "--clip", "a"], 2, "leave out --clip"),
    ],
)
def test_what_cannot_be_done_is_one_line(kg, published, tmp_path, args, code, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("dear")
    done = kg("convert", *args)
    assert (done.code, done.err.count("error:")) == (code, 1), done.err
    assert words in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"published.pt", "full"}


def test_another_models_tokenizer_is_refused(kg, published, tmp_path):
    nano = open_model().path / "tokenizer" / "sentencepiece.model"
    done = kg("convert", published, "model", "--spm", nano)
    assert done.code == 4 and "gives 174 ids, the checkpoint has" in done.err


def test_a_model_is_replaced_only_when_told_and_only_by_a_whole_one(kg, published, tiny_model, tmp_path, monkeypatch):
    assert kg("convert", published, "model").code == 0
    assert "give --overwrite" in kg("convert", published, "model").err
    before = sorted(path.name for path in (tmp_path / "model").iterdir())

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(conversion, "write_shards", fail)
        done = kg("convert", published, "model", *flags(tiny_model), "--overwrite")
        assert done.code == 1 and "model cannot be written" in done.err and "the disk is full" in done.err
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
    assert kg("convert", published, "model", *flags(tiny_model), "--overwrite").code == 0
    assert (tmp_path / "model" / "tokenizer").is_dir()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_found_before_anything_is_written(published, tmp_path, monkeypatch):
    source = conversion.open_checked(published, tmp_path / "model")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    with pytest.raises(KgError, match=r"model needs .* GB, 0\.0 GB are free"):
        conversion.to_folder(source, tmp_path / "model")


# ---------------------------------------------------------------- size


@pytest.mark.slow
@pytest.mark.parametrize("stage", [INSTRUCT, ALIGN])
def test_memory_stays_below_the_files_size_in_small(tmp_path, stage):
    idle, _, _ = run_measured("models", "show")  # torch alone, which a small file does not dwarf
    size = write_random(tmp_path / "published.pt", config_of(**SMALL), stage)
    peak, _, _ = run_measured("convert", tmp_path / "published.pt", tmp_path / "model", "--shard-size", size / 4e9)
    assert peak - idle <= MEMORY_RATIO * size
    peak, _, _ = load_measured(tmp_path / "model")
    assert peak - idle <= MEMORY_RATIO * size
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) >= 3


@pytest.mark.slow
def test_a_full_size_file_converts_in_little_memory(tmp_path):
    size = write_random(tmp_path / "published.pt", config_of())
    peak, seconds, printed = run_measured("convert", tmp_path / "published.pt", tmp_path / "model")
    print(f"{size / 1e9:.2f} GB: peak {peak / size:.2f} x file, {seconds:.0f} s")
    assert "1496 weights, 1494 read" in printed
    assert peak <= MEMORY_RATIO * size
    peak, _, printed = load_measured(tmp_path / "model")
    assert printed.split() == ["1887837696"]
    assert peak <= MEMORY_RATIO * size


@pytest.mark.slow
def test_a_full_size_file_in_fp32_converts_in_half_the_memory_it_has_bytes(tmp_path):
    decoder = json.loads((MANIFESTS / "official_keys_sd15_expected.json").read_text("utf-8"))
    frozen = {name: torch.Size(shape) for name, shape in decoder.items()}
    size = write_random(tmp_path / "published.pt", config_of(), dtype=torch.float32, frozen=frozen)
    assert size > 11.8e9
    peak, seconds, printed = run_measured("convert", tmp_path / "published.pt", tmp_path / "model")
    print(f"{size / 1e9:.2f} GB: peak {peak / size:.2f} x file, {seconds:.0f} s")
    assert "final (instruction tuning)" in printed
    assert peak < size / 2

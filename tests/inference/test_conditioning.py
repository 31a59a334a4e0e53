"""`kg encode` and its files: what other programs read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kgcli import KosmosGPipeline
from kgcli.errors import IncompatibleError, MissingError
from kgcli.inference.conditioning import FORMAT, read_conditioning

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text("utf-8")


@pytest.fixture
def encoded(kg, tiny_model, cat, tmp_path):
    flags = ["--negative-prompt", "low \\< quality", "--model", tiny_model, "--device", "cpu", "-o", "cond.safetensors"]
    done = kg("encode", f"a <image:{cat}> in the snow", *flags)
    assert (done.code, done.lines, done.err) == (0, ["cond.safetensors"], "")
    return tmp_path / "cond.safetensors"


def test_the_file_holds_what_the_pipeline_encodes(encoded, tiny_model, cat):
    wanted = KosmosGPipeline.from_pretrained(tiny_model).encode_prompt("a <image> in the snow", cat, "low \\< quality")
    for one, other in zip(read_conditioning(encoded), wanted, strict=True):
        assert torch.equal(one, other) and one.shape == (1, 4, 16)


def test_its_metadata_name_its_origin(encoded, cat, tmp_path):
    with safe_open(str(encoded), "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == FORMAT and metadata["dtype"] == "float32"
    assert metadata["prompt"] == "a <image:cat.png> in the snow" and metadata["negative_prompt"] == "low < quality"
    assert json.loads(metadata["images"])[0]["name"] == "cat.png" and len(json.loads(metadata["model"])["sha256"]) == 64
    assert str(tmp_path).encode() not in encoded.read_bytes()


def test_no_decoder_is_needed(kg, tiny_model, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer"):
        (folder / name).symlink_to(tiny_model / name)
    done = kg("encode", "a cat", "--model", folder, "--json", "--dtype", "bfloat16", "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads(done.out)["prompt_embeds"] == [1, 4, 16]
    assert read_conditioning(tmp_path / "cond.safetensors")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["a", "-o", "cond.pt"], 2, ".safetensors"),
        (["a", "-o", "there.safetensors"], 2, "--overwrite"),
        (["a <image:gone.png>"], 3, "column 3: there is no image gone.png"),
        (["a", "--negative-prompt", "<image:cat.png>"], 2, "text only"),
        (["a", "--model", "gone"], 3, "no model folder gone"),
    ],
)
def test_what_is_wrong_is_found_before_torch(kg, tiny_model, cat, tmp_path, without_engine, args, code, words):
    (tmp_path / "there.safetensors").write_text("mine")
    done = kg("encode", *args, *([] if "--model" in args else ["--model", tiny_model]))
    assert done.code == code and words in done.err, done.err


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(IncompatibleError, match="kg encode"):
        read_conditioning(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name in ("cut", "gone"):
        with pytest.raises(MissingError, match=name):
            read_conditioning(tmp_path / f"{name}.safetensors")


def test_the_node_of_the_readme_gives_comfyui_its_conditioning(encoded):
    """ComfyUI's CONDITIONING is a list of [tensor (1, tokens, width), options]."""
    (node,) = re.findall(r"```python\n(# ComfyUI.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(node, "node", "exec"), names)
    (kind,) = names["NODE_CLASS_MAPPINGS"].values()
    made = getattr(kind(), kind.FUNCTION)(str(encoded))
    assert kind.RETURN_TYPES == ("CONDITIONING", "CONDITIONING")
    for conditioning, tensor in zip(made, load_file(encoded).values(), strict=True):
        ((embeds, options),) = conditioning
        assert embeds.shape == tensor.shape and "pooled_output" in options
    assert torch.equal(made[0][0][0], load_file(encoded)["prompt_embeds"])

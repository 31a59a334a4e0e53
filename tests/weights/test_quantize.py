"""Laws of a quantised MLLM: the conditioning stays near, only linear layers change, image metadata record it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from kgcli import KosmosGPipeline
from kgcli.errors import IncompatibleError, UsageError
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.metadata import read_metadata
from kgcli.runtime import check_quantize
from kgcli.weights.folder import open_model
from kgcli.weights.load import load_kosmosg, save_kosmosg
from kgcli.weights.quantize import move
from kgcli.weights.shipped import DEFAULT_MODEL

pytest.importorskip("bitsandbytes")

# Relative L2 distance from full precision of the shipped model's conditioning; measured: 0.010 and 0.059.
TOLERANCES = {"8bit": 0.03, "4bit": 0.12}
IMAGE = Image.linear_gradient("L").convert("RGB")
# To Python, a module that is None in sys.modules is one that cannot be found.
WITHOUT_LIBRARY = """
import sys
sys.modules["bitsandbytes"] = None
from kgcli.cli.app import run
code = run(sys.argv[1:])
print("torch" in sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def quantize(request):
    return request.param


@pytest.fixture(scope="module")
def full():
    return load_kosmosg(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def few_bits(quantize):
    return load_kosmosg(DEFAULT_MODEL, quantize=quantize)


def encode(model, offload="none"):
    """Encode words and an image."""
    from kgcli.data.prompt import Prompt

    encoder = PromptEncoder(model, open_model(None).tokenizer)
    if offload != "none":
        encoder.set_offload(offload, torch.device("cpu"))
    return encoder.encode([Prompt.parse("a <image:x> in the snow")], [[IMAGE]]).float()


def distance(one, other):
    return float((one - other).norm() / other.norm())


def weights_of(model, *, linear):
    """Weights of the MLLM's linear layers, or all others, by name."""
    inside = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("mllm.")]
    names = {f"{name}.weight" for name in inside}
    return {name: weight for name, weight in model.named_parameters() if (name in names) == linear}


def test_the_conditioning_stays_near(full, few_bits, quantize):
    assert 0 < distance(encode(few_bits), encode(full)) < TOLERANCES[quantize]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_on_top(full, quantize, dtype):
    model = load_kosmosg(DEFAULT_MODEL, quantize=quantize, dtype=dtype)
    assert model.mllm.embedding.weight.dtype == dtype
    assert distance(encode(model), encode(full)) < TOLERANCES[quantize]


def test_only_the_linear_layers_of_the_mllm_change(full, few_bits, quantize):
    kept, wanted = (weights_of(model, linear=False) for model in (few_bits, full))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)
    changed, whole = (weights_of(few_bits, linear=True), weights_of(full, linear=True))
    assert changed.keys() == whole.keys() and len(whole) == 6 * full.cfg.mllm.num_layers
    assert all(not weight.is_floating_point() for weight in changed.values())
    ratio = sum(map(nbytes, changed.values())) / sum(map(nbytes, whole.values()))
    assert ratio == {"8bit": 1 / 4, "4bit": 1 / 8}[quantize]


def nbytes(weight):
    return weight.nbytes


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offload_changes_nothing(few_bits, full, offload):
    for model in (few_bits, full):
        assert torch.equal(encode(model, offload), encode(model))


def test_what_belongs_to_a_layer_goes_where_it_goes(few_bits):
    """Scales of 8 bits and blocks of 4 follow the weight; the meta device stands in for any other."""
    model = copy.deepcopy(few_bits)
    encode(model)
    meta = torch.device("meta")
    move(model.mllm, meta)
    for linear in (module for module in model.mllm.modules() if isinstance(module, nn.Linear)):
        kept = (
            [linear.weight.quant_state.absmax] if few_bits.quantize == "4bit" else [linear.state.CB, linear.state.SCB]
        )
        assert {tensor.device for tensor in (linear.weight, *kept)} == {meta}


def test_it_keeps_its_precision_and_is_not_saved(few_bits, tmp_path):
    pipeline = KosmosGPipeline.from_pretrained(quantize=few_bits.quantize)
    with pytest.raises(UsageError, match="give torch_dtype when loading"):
        pipeline.to(torch.float16)
    assert pipeline.to("cpu").model.quantize == few_bits.quantize
    with pytest.raises(UsageError, match="cannot be saved"):
        save_kosmosg(few_bits, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_do_not_fit_are_named(tiny_model, tmp_path, quantize):
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_model / "model.safetensors")
    name = "mllm.stack.layers.0.ffn.fc1.weight"
    weights[name] = weights[name][:, :8].contiguous()
    del weights["mllm.stack.layers.0.ffn.fc2.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(IncompatibleError, match=r"1 missing \(.*fc2.bias\); 1 of another shape \(.*fc1"):
        load_kosmosg(tmp_path, quantize=quantize)


def test_image_metadata_record_it_and_replay_it(kg, tiny_model, cat, tmp_path, quantize):
    generate = ["generate", "a <image:cat.png>", "--model", tiny_model, "-s", "1"]
    assert kg(*generate, "--quantize", quantize, "-o", "few.png").code == 0
    assert kg(*generate, "-o", "full.png").code == 0
    said = [read_metadata(tmp_path / name)["quantize"] for name in ("few.png", "full.png")]
    assert said == [quantize, "none"]
    few = (tmp_path / "few.png").read_bytes()
    assert Image.open(tmp_path / "few.png").tobytes() != Image.open(tmp_path / "full.png").tobytes()
    again = ["generate", "--from", "few.png", "--model", tiny_model]
    assert kg(*again, "-o", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == few
    assert kg(*again, "--quantize", "none", "-o", "none.png").code == 0
    assert (tmp_path / "none.png").read_bytes() == (tmp_path / "full.png").read_bytes()


def test_an_encoded_prompt_says_it(kg, tiny_model, cat, tmp_path, quantize):
    from safetensors import safe_open

    assert kg("encode", "a <image:cat.png>", "--model", tiny_model, "--quantize", quantize).code == 0
    with safe_open(str(tmp_path / "cond.safetensors"), "pt") as file:
        assert file.metadata()["quantize"] == quantize


@pytest.mark.parametrize("verb", ["generate", "encode"])
def test_what_cannot_be_is_refused_before_torch(kg, without_engine, verb):
    done = kg(verb, "a cat", "--quantize", "3bit")
    assert done.code == 2 and "none, 8bit, 4bit" in done.err
    done = kg(verb, "a cat", "--quantize", "8bit", "--device", "mps")
    assert done.code == 4 and "cannot compute on mps" in done.err


def test_the_library_is_required_before_anything_loads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY, "generate", "a cat", "--quantize", "8bit", "-o", "a.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False"), done.stderr
    assert "pip install 'kgcli[quant]'" in done.stderr and not list(tmp_path.iterdir())


def test_python_asks_for_the_library_too(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for load in (load_kosmosg, KosmosGPipeline.from_pretrained):
        with pytest.raises(UsageError, match=r"kgcli\[quant\]"):  # not that the folder is absent
            load(tmp_path / "absent", quantize="4bit")
    check_quantize("none")


def test_images_of_earlier_versions_are_replayed_in_full_precision(kg, tiny_model, cat, tmp_path):
    """Their metadata have no quantisation."""
    from PIL.PngImagePlugin import PngInfo

    assert kg("generate", "a <image:cat.png>", "--model", tiny_model, "-o", "a.png").code == 0
    metadata = read_metadata(tmp_path / "a.png")
    del metadata["quantize"]
    chunks = PngInfo()
    chunks.add_itxt("kgcli", json.dumps(metadata))
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "old.png", pnginfo=chunks)
    assert kg("generate", "--from", "old.png", "--model", tiny_model, "-o", "b.png").code == 0
    assert read_metadata(tmp_path / "b.png")["quantize"] == "none"

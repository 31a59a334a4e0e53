"""Laws of weight files."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights import tensor_files as tensorfiles
from kgcli.weights.safetensors import assign_weights, read_weights, write_weights


def test_shards_read_as_one_file(tmp_path):
    tensors = {"a": torch.randn(2), "b": torch.arange(3)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    read = read_weights(tmp_path / "model.safetensors", dtype=torch.float16)
    assert torch.equal(read["a"], tensors["a"].half())
    assert torch.equal(read["b"], tensors["b"])  # whole numbers keep their type
    (tmp_path / "model-b.safetensors").unlink()
    with pytest.raises(MissingError, match=r"lacks 1 of 2 weight files \(model-b\.safetensors\)"):
        read_weights(tmp_path / "model.safetensors")


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_weights(path, {"a": torch.zeros(2)})

    def half_a_file(_tensors, target, **_options):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorfiles, "save_file", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, {"a": torch.ones(2)})
    assert torch.equal(read_weights(path)["a"], torch.zeros(2))
    assert list(tmp_path.iterdir()) == [path]


def test_every_fault_of_a_set_of_weights_is_named():
    given = {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    with pytest.raises(IncompatibleError) as caught:
        assign_weights(nn.Linear(2, 2), given, source="a test")
    assert str(caught.value) == (
        "the weights of a test do not fit this model: 1 missing (bias); 1 unexpected (extra); "
        "1 of another shape (weight (2, 3) for (2, 2))"
    )

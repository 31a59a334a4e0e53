"""Laws of reading other programs' files: nothing in them is run, and what is wrong with one is said in a line."""

from __future__ import annotations

import argparse
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from kgcli.errors import IncompatibleError, KgError, MissingError
from kgcli.weights.published.fairseq import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path, function=open) -> None:
        self.call = function, (f"touch {path}",) if function is not open else (str(path), "w")

    def __reduce__(self):
        return self.call


def write(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_read(path: Path) -> None:
    read = read_checkpoint(path).weights
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items())


@BOTH_FORMATS
def test_a_file_as_fairseq_writes_it_is_read(tmp_path, zipped):
    content = {
        "args": None,
        "cfg": {"model": argparse.Namespace(decoder_layers=2, inner=argparse.Namespace(x=(1, [2.5]))), "task": {}},
        "model": WEIGHTS,
        "optimizer_history": [{"num_updates": np.int64(3), "loss": np.float32(1.5), "best": np.float64(2)}],
        "extra_state": {"order": np.arange(3), "random": (3, (1, 2), None)},
    }
    path = write(tmp_path / "checkpoint.pt", content, zipped=zipped)
    assert_read(path)
    assert read_checkpoint(path).settings["decoder_layers"] == 2


@pytest.mark.parametrize(
    "content",
    [WEIGHTS, {"state_dict": WEIGHTS}, {"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}}],
    ids=["plain", "open_clip", "of a parallel run"],
)
def test_other_programs_state_dicts_are_read(tmp_path, content):
    assert_read(write(tmp_path / "weights.bin", content))


def test_a_file_that_can_be_mapped_is_not_loaded(tmp_path):
    path = write(tmp_path / "checkpoint.pt", {"model": {"a": torch.zeros(1000)}})
    before = read_checkpoint(path).weights["a"]
    with path.open("r+b") as file:  # a mapping shows what is in the file now
        data = path.read_bytes()
        file.seek(data.index(b"\0" * 4000))
        file.write(np.float32(7).tobytes())
    assert before[0] == 7


def test_objects_of_fairseqs_libraries_are_left_out(tmp_path, monkeypatch):
    module = types.ModuleType("fairseq.meters")
    exec(
        "class Meter:\n    def __init__(self, n): self.n = n\n    def __setstate__(self, s): raise SystemError",
        vars(module),
    )
    module.Meter.__module__ = "fairseq.meters"
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    path = write(tmp_path / "checkpoint.pt", {"model": WEIGHTS, "extra_state": [module.Meter(1)]})
    monkeypatch.undo()
    assert_read(path)


@BOTH_FORMATS
@pytest.mark.parametrize("place", ["beside", "among", "instead"])
def test_a_file_that_would_run_code_is_refused(tmp_path, zipped, place):
    evil = Evil(tmp_path / "harm")
    content = {"beside": {"model": WEIGHTS, "cfg": evil}, "among": {"model": WEIGHTS | {"x": evil}}, "instead": evil}
    path = write(tmp_path / "checkpoint.pt", content[place], zipped=zipped)
    with pytest.raises(IncompatibleError, match=r"refused: it needs \S*open, .* no code was run"):
        read_checkpoint(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_protocol_runs_code(tmp_path, protocol):
    import os

    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "harm", os.system), protocol=protocol))
    with pytest.raises(KgError, match="no code was run"):
        read_checkpoint(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
@BOTH_FORMATS
def test_a_truncated_file_is_damaged(tmp_path, fraction, zipped):
    path = write(tmp_path / "checkpoint.pt", {"model": WEIGHTS}, zipped=zipped)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(MissingError, match=r"checkpoint\.pt cannot be read .* damaged or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [b"not a pickle\n", b"PK\x03\x04 nor a zip", bytes(range(256))])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, data):
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(MissingError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_a_file_without_weights_says_so(tmp_path):
    for content, words in (
        ([1], "no weights"),
        ({}, "no weights"),
        ({"model": {"a": 1}}, r"1 value\(s\) that are not weights, such as a"),
    ):
        with pytest.raises(IncompatibleError, match=words):
            read_checkpoint(write(tmp_path / "checkpoint.pt", content))
    with pytest.raises(MissingError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "nowhere.pt")

"""Measurements: a line of JSON with sensible numbers, and nothing of a run folder touched."""

import json

import pytest

from kgcli.data.pool import PoolImages
from kgcli.speed.clock import Times, arithmetic, ratio, take_turns


def result(done):
    assert done.code == 0, done.err
    (line,) = done.lines
    return json.loads(line)


def test_generating(kg, tiny_model):
    done = kg("bench", "generate", "a cat", "--model", tiny_model, "--batch-size", 2, "--repeats", 2, "--steps", 3)
    found = result(done)
    assert found["theme"] == "generate" and found["batch_size"] == 2 and found["size"] == "16x16"
    assert found["images_per_second"] == pytest.approx(2 / found["seconds"], rel=1e-3)
    assert 0.2 < found["against_diffusers"] < 20 and found["against_one_by_one"] > 0.2
    assert found["tflops_per_second"] > 0 and "mfu" not in found and found["peak_memory_bytes"] > 2**20
    assert "images per second" in done.err and "kg bench generate" in done.err


def test_encoding(kg, tiny_model):
    found = result(kg("bench", "encode", "a <image:nano/cat.png>", "--model", tiny_model, "--batch-size", 3, "-q"))
    assert found["images"] == 1 and found["batch_size"] == 3 and found["against_model"] > 0.2
    assert found["prompts_per_second"] == pytest.approx(3 / found["seconds"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["smoke/eval_dino", "smoke/vae"])
def test_training_leaves_the_run_folder_alone(kg, tmp_path, recipe):
    found = result(kg("bench", "train", recipe, "data.batch_size=2", "-n", 2))
    assert found["stage"] == recipe.removeprefix("smoke/") and found["steps"] == 2
    assert 0 <= found["data_wait"] < 1 and found["against_kept_batch"] > 0.2
    assert list(tmp_path.iterdir()) == []


def test_training_on_files_encodes_the_samples_of_its_steps_alone(kg, tmp_path, monkeypatch):
    encoded, read = [], PoolImages.__getitem__

    def counted(images, place):
        encoded.append(place)
        return read(images, place)

    monkeypatch.setattr(PoolImages, "__getitem__", counted)
    settings = ["data.batch_size=2", "data.num_workers=0", "data.bucket=1"]
    result(kg("bench", "train", "example-data/instruct", *settings, "-n", 1))
    assert sorted(set(encoded)) == list(range(6))  # of 50 rows: three steps of two samples
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [("generate", "--repeats", 0), ("encode", "--repeats", 1001), ("train", "smoke/vae", "-n", 0),
     ("generate", "--batch-size", "x"), ("encode", "--batch-size", "99")],
)  # fmt: skip
def test_wrong_numbers_are_refused_before_torch_loads(kg, without_engine, args):
    done = kg("bench", *args)
    assert done.code == 2 and "must be" in done.err


def test_calls_take_turns_and_are_compared_round_by_round():
    order = []
    taken = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == ["a", "b", "b", "a", "a", "b"] and [len(times) for times in taken.values()] == [2, 2]
    assert ratio([Times(9, 2), Times(9, 9), Times(9, 4)], [Times(1, 1), Times(1, 3), Times(1, 2)]) == 2


def test_only_a_known_gpu_has_a_peak(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert arithmetic(989e12, 2.0, "cuda")["mfu"] == pytest.approx(0.5)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "another")
    assert "mfu" not in arithmetic(989e12, 2.0, "cuda")
    assert arithmetic(1e12, 2.0, "cpu") == {"tflops_per_second": 0.5}

"""Laws of batches: which images are denoised together, and that each is generated again exactly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli import engine
from kgcli.config import MAX_BATCH, SamplingConfig
from kgcli.data.prompt import Prompt
from kgcli.errors import OutOfMemoryError, UsageError
from kgcli.inference.batching import CPU_ROWS, ROW_BYTES, Batches, auto_size, make_batches
from kgcli.inference.metadata import read_metadata
from kgcli.inference.request import BatchRow, Request, make_request


@pytest.fixture(scope="module")
def model(tiny_model):
    return engine.load(str(tiny_model), device="cpu")


def requests_of(num, **fields):
    return [Request(prompt=Prompt.parse("a cat"), seed=seed, **fields) for seed in range(num)]


def sizes(batches):
    return [[(one.seed, one.row.size, one.row.index) for one in batch] for batch in batches]


def test_consecutive_requests_go_together_and_know_their_rows():
    assert sizes(Batches(requests_of(3), 2)) == [[(0, 2, 0), (1, 2, 1)], [(2, 1, 0)]]


def test_requests_with_other_settings_are_not_mixed():
    wide = requests_of(1, sampling=SamplingConfig(width=32))
    assert sizes(Batches([*requests_of(2), *wide, *wide], 8)) == [[(0, 2, 0), (1, 2, 1)], [(0, 2, 0), (0, 2, 1)]]


def test_a_request_with_a_row_is_alone():
    row = BatchRow(size=4, index=2)
    assert sizes(Batches([*requests_of(2), *requests_of(1, row=row)], 8)) == [[(0, 2, 0), (1, 2, 1)], [(0, 4, 2)]]


def test_a_batch_that_ran_out_of_memory_comes_again_in_halves():
    batches = Batches(requests_of(8), 8, may_halve=True)
    assert batches.halve(next(batches))
    assert sizes(batches) == [[(seed, 4, seed % 4) for seed in range(first, first + 4)] for first in (0, 4)]
    assert not batches.halve(requests_of(1))


def test_auto_starts_with_what_fits():
    assert auto_size(512 * 512, "cuda") == MAX_BATCH
    assert auto_size(64 * 64, "cpu") == CPU_ROWS
    assert auto_size(512 * 512, "cpu", free_bytes=4 * 512 * 512 * ROW_BYTES) == 2
    assert auto_size(512 * 512, "cpu", free_bytes=0) == 1
    assert make_batches(requests_of(1), "auto", SamplingConfig(width=64, height=64), "cpu").may_halve


@pytest.mark.parametrize("size", ["0", "17", "-1", "two", "1.5", ""])
def test_other_sizes_are_refused(size):
    with pytest.raises(UsageError, match="auto or from 1 to 16"):
        make_batches([], size, SamplingConfig(width=64, height=64), "cpu")


def test_a_row_does_not_depend_on_what_the_other_rows_hold(model, cat):
    """This is what replaying one image of a batch rests on."""
    texts = ["a cat", f"a <image:{cat}> in the snow", "two dogs", "low quality"]
    mixed = [make_request(model.folder, text, seed=seed) for seed, text in enumerate(texts)]
    together = [(request, image.tobytes()) for request, image in engine.generate(model, mixed, batch_size=4)]
    for request, pixels in together:
        assert request.row.size == 4
        ((again, image),) = engine.generate(model, [request])
        assert image.tobytes() == pixels and again == request


def test_by_default_an_image_depends_on_its_own_request_alone(model):
    several = model.generate("a cat", seed=3, num_images=3)
    assert several[2].tobytes() == model.generate("a cat", seed=5)[0].tobytes()


def limited(model, monkeypatch, most):
    """A U-Net that has memory for so many rows."""

    def refuse(module, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return model.pipeline.decoder.unet.register_forward_pre_hook(refuse)


def test_auto_halves_until_it_fits_and_records_the_size(model, monkeypatch, caplog):
    handle = limited(model, monkeypatch, most=4)  # rows of the U-Net: two for each image
    try:
        made = list(engine.generate(model, requests_of(8), batch_size="auto"))
        with pytest.raises(OutOfMemoryError, match="--batch-size 1"):
            list(engine.generate(model, requests_of(8), batch_size=8))
    finally:
        handle.remove()
    assert [(one.seed, one.row.size) for one, _ in made] == [(seed, 2) for seed in range(8)]
    assert "going on with 4" in caplog.text and "going on with 2" in caplog.text


def test_each_step_of_each_image_is_reported(model):
    steps = []
    list(engine.generate(model, requests_of(3), steps.append, batch_size=2))
    assert steps == [1, 1, 2, 2, 1, 2]


@pytest.mark.parametrize("command", [("generate", "a cat in the snow"), ("edit", "cat.png", "add a hat")])
def test_an_image_of_a_batch_is_replayed_exactly(kg, tiny_model, cat, tmp_path, command):
    few = ("--model", tiny_model, "-s", 5, "--scheduler", "lcm", "--steps", 3)
    assert kg(*command, *few, "-n", 3, "--batch-size", 3, "-o", "a-{index}.png").code == 0
    assert read_metadata(tmp_path / "a-2.png")["batch"] == {"size": 3, "index": 1}
    assert kg("generate", "--from", "a-2.png", "--model", tiny_model, "-o", "again.png").code == 0
    first, again = (tmp_path / name for name in ("a-2.png", "again.png"))
    assert first.read_bytes() == again.read_bytes()
    assert kg("generate", "--from", "a-2.png", "--model", tiny_model, "-s", 9, "-o", "other.png").code == 0
    assert "batch" not in read_metadata(tmp_path / "other.png")


def test_prompts_of_a_batch_file_go_together_and_are_replayed_exactly(kg, tiny_model, tmp_path):
    (tmp_path / "lines.txt").write_text("a cat\ntwo dogs in the snow\n")
    assert kg("generate", "--batch", "lines.txt", "--model", tiny_model, "-s", 1, "--batch-size", "auto",
              "-o", "b{index}.png").code == 0  # fmt: skip
    assert read_metadata(tmp_path / "b2.png")["batch"] == {"size": 2, "index": 1}
    assert kg("generate", "--from", "b2.png", "--model", tiny_model, "-o", "again.png").code == 0
    assert (tmp_path / "b2.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_alone_nothing_is_recorded(kg, tiny_model, tmp_path):
    assert kg("generate", "a cat", "--model", tiny_model, "-s", 1, "-n", 2, "-o", "a.png").code == 0
    assert "batch" not in read_metadata(tmp_path / "a-1.png")


@pytest.mark.parametrize("batch", [{"size": 17, "index": 0}, {"size": 4, "index": 4}, {"size": 2}, "two"])
def test_a_damaged_row_is_refused(kg, tiny_model, tmp_path, batch):
    assert kg("generate", "a cat", "--model", tiny_model, "-s", 1, "-o", "a.jpg").code == 0
    beside = tmp_path / "a.jpg.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "batch": batch}))
    done = kg("generate", "--from", "a.jpg", "--model", tiny_model, "-o", "b.png")
    assert done.code == 3 and "damaged" in done.err
    assert Image.open(tmp_path / "a.jpg").size == (16, 16)


def test_a_wrong_size_is_refused_before_torch_loads(kg, without_engine):
    done = kg("generate", "a cat", "--batch-size", "99")
    assert done.code == 2 and "--batch-size is 99" in done.err


def test_a_replay_computes_on_as_many_threads(kg, tiny_model, tmp_path, monkeypatch):
    assert kg("generate", "a cat", "--model", tiny_model, "-s", 1, "-o", "a.png").code == 0
    assert read_metadata(tmp_path / "a.png")["threads"] == torch.get_num_threads()
    wanted = []
    monkeypatch.setattr("kgcli.runtime.set_threads", wanted.append)
    monkeypatch.setattr("kgcli.runtime.choose_threads", lambda num_bytes: 77)
    assert kg("generate", "--from", "a.png", "--model", tiny_model, "-o", "b.png").code == 0
    assert wanted[0] == torch.get_num_threads()  # the first call decides
    wanted.clear()
    assert kg("generate", "a cat", "--model", tiny_model, "-s", 1, "-o", "c.png").code == 0
    assert wanted[0] == 77


@pytest.mark.slow
def test_adapters_act_on_all_rows_and_are_replayed(kg, tmp_path):
    flags = ("--controlnet", "canny=nano/dog.png", "--lora", "nano/comic:0.8", "--steps", 1, "-s", 1)
    assert kg("generate", "a cat", *flags, "-n", 3, "--batch-size", 3, "-o", "a-{index}.png").code == 0
    assert kg("generate", "a cat", *flags, "-o", "alone.png").code == 0
    assert kg("generate", "--from", "a-3.png", "-o", "again.png").code == 0
    assert (tmp_path / "a-3.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    first, alone = (np.asarray(Image.open(tmp_path / name), int) for name in ("a-1.png", "alone.png"))
    assert np.abs(first - alone).max() <= 2

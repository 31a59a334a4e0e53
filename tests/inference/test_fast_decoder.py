"""Compiled decoders and weights with channels last give the same images, up to rounding."""

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli import engine
from kgcli.inference.fast_decoder import channels_last
from kgcli.inference.metadata import read_metadata


def difference(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


def test_the_layout_of_weights_is_restored(tiny_model):
    decoder = engine.load(str(tiny_model), device="cpu").pipeline.decoder
    weight = decoder.unet.conv_in.weight
    before = weight.detach().clone()
    with channels_last(decoder):
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert weight.is_contiguous() and torch.equal(weight, before)
    with channels_last(decoder, wanted=False):
        assert weight.is_contiguous()


@pytest.mark.slow
def test_a_compiled_decoder_gives_the_same_images_and_takes_adapters(tiny_model):
    plain = engine.load(str(tiny_model), device="cpu")
    fast = engine.load(str(tiny_model), device="cpu", compile=True)
    for options in ({"seed": 1}, {"seed": 1, "num_images": 2, "batch_size": 2}):
        for one, other in zip(plain.generate("a cat", **options), fast.generate("a cat", **options), strict=True):
            assert difference(one, other) <= 1
    seen = []
    handle = fast.pipeline.decoder.unet.register_forward_pre_hook(lambda *_: seen.append(1))
    fast.generate("a cat", seed=1)
    handle.remove()
    assert len(seen) == 2  # hooks are called, though they came after compilation


@pytest.mark.slow
def test_compilation_is_recorded_and_replayed(kg, tiny_model, tmp_path):
    first = kg("generate", "a cat", "--model", tiny_model, "-s", 1, "--compile", "-o", "a.png")
    assert first.code == 0, first.err
    assert read_metadata(tmp_path / "a.png")["compile"] is True
    assert kg("generate", "--from", "a.png", "--model", tiny_model, "-o", "b.png").code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert kg("generate", "--from", "a.png", "--no-compile", "--model", tiny_model, "-o", "c.png").code == 0
    assert "compile" not in read_metadata(tmp_path / "c.png")
    assert difference(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "c.png")) <= 1

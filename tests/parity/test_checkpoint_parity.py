"""The published files themselves: read, made a model folder, and written back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.load import load_kosmosg
from kgcli.weights.published.checkpoint import ALIGN, open_source
from kgcli.weights.published.convert import to_folder, to_published
from kgcli.weights.published.fairseq import read_checkpoint
from kgcli.weights.published.names import FLOAT_TENSOR, decoder_weights, from_published, is_dropped
from kgcli.weights.safetensors import read_weights

SD15_UNET = {"cross_attention_dim": 768}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@pytest.mark.parametrize("path", golden.tiny_files("checkpoint_*.pt"), ids=lambda path: path.stem)
def test_a_published_file_becomes_a_model_folder_and_the_same_file_again(path: Path, tmp_path: Path) -> None:
    cfg = golden.model_config()
    source, out = open_source(path, cfg=None if heads_are_alike(cfg) else cfg), tmp_path / "model"
    to_folder(source, out, shard_size=100_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1

    # The same weights lie beside it in a format that needs no unpickling.
    expected = from_published(golden.published_weights("align" if source.stage == ALIGN else "final"))
    assert_equal(read_weights(out / "model.safetensors"), expected)
    model = load_kosmosg(out, with_aligner_decoder=source.stage == ALIGN)
    assert same_sizes(model) == cfg

    to_published(out, tmp_path / "back.pt")
    back, first = read_checkpoint(tmp_path / "back.pt").weights, read_checkpoint(path).weights
    assert (back.pop(FLOAT_TENSOR).shape, back[name_of_scale(back)].dtype) == ((1,), torch.float32)
    kept = {name for name in first if name in back or not is_dropped(name)}
    assert_equal(back, {name: first[name] for name in kept})
    assert_equal(read_weights(out / "model.safetensors"), from_published(back))


def test_the_decoders_names_are_those_of_stable_diffusion() -> None:
    path = golden.FOLDER / "official_keys_sd15_expected.json"
    if not path.is_file():
        pytest.skip(f"{golden.FOLDER} holds no {path.name}")
    keys = json.loads(path.read_text("utf-8"))
    assert all(is_dropped(name) for name in keys)
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in keys.items()}
        parts = (UNet2DConditionModel(**SD15_UNET), AutoencoderKL(**SD15_VAE))
    for part, weights in zip(parts, decoder_weights(published), strict=True):
        assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in part.state_dict().items()}


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, types and bits."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def name_of_scale(weights: dict[str, Tensor]) -> str:
    """The rotary constant's name; a written file has one."""
    return next(name for name in weights if name.endswith("self_attn_sope.scale"))


def heads_are_alike(cfg: ModelConfig) -> bool:
    """Whether one width of an attention head, as in the published model, holds throughout: shapes alone do not say."""
    parts = ((cfg.vision, cfg.vision), (cfg.mllm, cfg.mllm), (cfg.mllm, cfg.resampler), (cfg.aligner, cfg.aligner))
    return len({wide.width // part.num_heads for wide, part in parts}) == 1


def same_sizes(model: KosmosG) -> object:
    """The model's configuration, with the length that no weight of the golden models tells."""
    mllm = golden.model_config().mllm.max_positions
    return model.cfg.model_copy(update={"mllm": model.cfg.mllm.model_copy(update={"max_positions": mllm})})

"""Laws of recognising published checkpoints: at full size every weight has its place, and every fault is named."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import CONFIG, make_model
from torch import Tensor

from kgcli.config import ModelConfig
from kgcli.errors import IncompatibleError, UsageError
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.published.checkpoint import ALIGN, INSTRUCT, PRETRAIN, check_source, expected_weights, open_source
from kgcli.weights.published.fairseq import Checkpoint
from kgcli.weights.published.names import FLOAT_TENSOR, ROTARY_SCALE, published_buffers, to_published

MANIFESTS = Path(__file__).parents[2] / "parity" / "fixtures"
PATH = Path("checkpoint.pt")
NUM_WEIGHTS = {"align": 2104, "final": 1496}
HEADS_OF_8 = CONFIG.model_copy(
    update={
        "mllm": CONFIG.mllm.model_copy(update={"num_heads": 3, "max_positions": 38}),
        "resampler": CONFIG.resampler.model_copy(update={"num_heads": 3}),
    }
)


@cache
def manifest(stage: str) -> dict[str, torch.Size]:
    shapes = json.loads((MANIFESTS / f"official_keys_{stage}.json").read_text("utf-8"))
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def full_size(stage: str, **changes: list[int] | None) -> Checkpoint:
    """The published weights on the meta device; `changes` give one another shape, or take it away."""
    shapes = {**manifest(stage), **changes}
    weights = {name: torch.empty(s, dtype=torch.float16, device="meta") for name, s in shapes.items() if s is not None}
    return Checkpoint(weights)


def small(stage: str = INSTRUCT, *, with_buffers: bool = True) -> dict[str, Tensor]:
    """A published state dict of a model with heads of 8."""
    torch.manual_seed(0)
    state = KosmosG(HEADS_OF_8, with_aligner_decoder=True).state_dict()
    state = {name: state[name] for name in expected_weights(HEADS_OF_8, stage)}
    return to_published(state) | (published_buffers(8, torch.float32) if with_buffers else {})


# ---------------------------------------------------------------- full size


@pytest.mark.parametrize("stage", ["align", "final"])
def test_every_published_weight_has_its_place(stage):
    source = check_source(full_size(stage), PATH)
    assert source.cfg == ModelConfig()
    assert source.stage == {"align": ALIGN, "final": INSTRUCT}[stage]
    assert (source.num_weights, source.num_dropped) == (NUM_WEIGHTS[stage], 2)
    assert set(source.dtypes.values()) == {torch.float16}
    back = to_published(expected_weights(source.cfg, source.stage)) | published_buffers(64, torch.float16)
    assert {name: tensor.shape for name, tensor in back.items()} == manifest(stage)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_model.decoder.layers.23.ffn.fc2.bias",
        "gpt_model.decoder.layer_norm.weight",
        "img_model.visual.positional_embedding",
        "img_model.visual.conv1.weight",
        "img_model.visual.transformer.resblocks.7.ts_attn.q_proj.weight",
        "img_connector.latent_query",
        "aligner.encoder_query",
        "aligner.encoder_proj.embed_positions.weight",
        "aligner.decoder_query",
    ],
)
def test_one_weight_missing_or_of_another_shape_is_named(name):
    with pytest.raises(IncompatibleError, match=rf"checkpoint\.pt do not fit this model: 1 missing \({name}\)$"):
        check_source(full_size("align", **{name: None}), PATH)
    shape = manifest("align")[name]
    wrong = [shape[0] - 1, *shape[1:]]
    with pytest.raises(IncompatibleError) as caught:
        check_source(full_size("align", **{name: wrong}), PATH)
    assert str(caught.value).endswith(f": 1 of another shape ({name} {tuple(wrong)} for {tuple(shape)})")


@pytest.mark.parametrize("name", ["gpt_model.decoder.layers.24.ffn.fc1.bias", "aligner.extra", "discriminator.weight"])
def test_a_weight_too_many_is_named(name):
    with pytest.raises(IncompatibleError, match=rf": 1 unexpected \({name}\)$"):
        check_source(full_size("final", **{name: [1]}), PATH)


def test_all_faults_are_counted_and_many_named():
    gone = [name for name in manifest("final") if ".layers.5." in name and name.startswith("gpt_model.")]
    with pytest.raises(IncompatibleError) as caught:
        check_source(full_size("final", **dict.fromkeys(gone), other=[2]), PATH)
    assert f": {len(gone)} missing (" in str(caught.value)
    assert sum(name in str(caught.value) for name in gone) >= 20
    assert str(caught.value).endswith("; 1 unexpected (other)")


def test_the_documented_extras_are_left_out():
    extras = {
        "aligner.clip_encoder.text_model.final_layer_norm.weight": [768],
        "img_model.visual.transformer.resblocks.0.attn.in_proj_weight": [3072, 1024],
        "diffusion_unet.unet.conv_in.weight": [320, 4, 3, 3],
        "vae.vae.encoder.conv_in.bias": [128],
    }
    source = check_source(full_size("final", **extras), PATH)
    assert (source.num_weights, source.num_dropped) == (1500, 6)
    buffers = dict.fromkeys((FLOAT_TENSOR, ROTARY_SCALE))
    assert check_source(full_size("final", **buffers), PATH).num_dropped == 0


# ---------------------------------------------------------------- any size


@pytest.mark.parametrize("stage", [PRETRAIN, ALIGN, INSTRUCT])
def test_stage_and_sizes_are_told_from_the_weights(stage):
    source = check_source(Checkpoint(small(stage)), PATH)
    assert source.stage == stage
    for part in ("vision", "resampler", "mllm", *(() if stage == PRETRAIN else ("aligner",))):
        told = getattr(source.cfg, part).model_dump(exclude={"max_positions"})
        assert told == getattr(HEADS_OF_8, part).model_dump(exclude={"max_positions"})


def test_heads_are_told_by_the_settings_where_the_rotary_constant_is_missing():
    weights = small(with_buffers=False)
    settings = {"decoder_embed_dim": 24, "decoder_attention_heads": 3}
    assert check_source(Checkpoint(weights, settings), PATH).cfg.vision.num_heads == 2
    with pytest.raises(IncompatibleError, match="number of attention heads is unknown: .*--config"):
        check_source(Checkpoint(weights), PATH)
    assert check_source(Checkpoint(weights), PATH, cfg=HEADS_OF_8).cfg == HEADS_OF_8


@pytest.mark.parametrize("name", sorted(small()))
def test_no_single_fault_in_a_small_model_goes_unnoticed(name):
    if name in (FLOAT_TENSOR, ROTARY_SCALE):
        pytest.skip("serves nothing")
    weights = small()
    del weights[name]
    with pytest.raises(IncompatibleError, match=name.replace(".", r"\.")):
        check_source(Checkpoint(weights), PATH)


def test_whole_numbers_are_no_weights():
    name = "gpt_model.decoder.layer_norm.weight"
    weights = small()
    with pytest.raises(IncompatibleError, match=rf"1 integer weight\(s\), such as {name}"):
        check_source(Checkpoint(weights | {name: weights[name].long()}), PATH)


# ---------------------------------------------------------------- CLIP


def clip_file(folder: Path) -> Path:
    """A CLIP file with fused attention, of the small model's tower."""
    published = to_published({f"vision.{name}": tensor for name, tensor in make_model().vision.state_dict().items()})
    fused = {}
    for name, tensor in published.items():
        name = name.removeprefix("img_model.")
        block, split, part = name.partition("ts_attn.")
        if not split:
            fused[name] = tensor
        elif part.startswith("out_proj"):
            fused[f"{block}attn.{part}"] = tensor
        elif part.startswith("q_proj"):
            kind = part.removeprefix("q_proj.")
            rows = [published[f"img_model.{block}ts_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            fused[f"{block}attn.in_proj_{kind}"] = torch.cat(rows)
    path = folder / "clip.safetensors"
    save_file(fused | {"visual.proj": torch.zeros(2), "text_projection": torch.zeros(2)}, path)
    return path


def test_a_checkpoint_without_a_tower_takes_clips(tmp_path):
    clip = clip_file(tmp_path)
    weights = {name: tensor for name, tensor in small(PRETRAIN).items() if not name.startswith("img_model.")}
    path = tmp_path / "stage1.pt"
    torch.save({"model": weights}, path)
    with pytest.raises(IncompatibleError, match="no vision tower; .*--clip"):
        open_source(path)
    source = open_source(path, clip=clip)
    read = source.read()
    assert read.keys() == source.shapes.keys()
    tower = make_model().vision.state_dict()
    assert all(torch.equal(read[f"vision.{name}"], tensor) for name, tensor in tower.items())


def test_a_tower_is_not_replaced(tmp_path):
    with pytest.raises(UsageError, match="has its own vision tower"):
        check_source(Checkpoint(small()), PATH, clip=clip_file(tmp_path))

"""Laws of Kosmos-2 as stage 1: the same numbers from the converted folder, the same ids, and all three stages on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from kosmos2_files import CONFIG, SNOWMAN, make_kosmos2, save_fairseq, save_kosmos2, write_random_kosmos2
from PIL import Image
from random_checkpoint import run_measured
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kgcli.config import AlignerConfig, ModelConfig
from kgcli.data.images import to_vision_pixels
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import IncompatibleError
from kgcli.model.kosmosg import KosmosG
from kgcli.recipe import load_recipe
from kgcli.training.stages import make_stage
from kgcli.weights.config import read_model_config
from kgcli.weights.load import load_kosmosg
from kgcli.weights.published import convert as conversion
from kgcli.weights.published.checkpoint import PRETRAIN, expected_weights
from kgcli.weights.published.kosmos2 import OUTPUT_PROJECTION, from_kosmos2
from kgcli.weights.safetensors import read_weights

MEMORY_RATIO = 1.2  # of the file's size
TOLERANCE = 1e-6  # largest difference that is allowed; 0 is what is found
ALIGNER = AlignerConfig(width=16, num_heads=2, ffn_width=32, num_layers=1, num_queries=4, max_positions=64)
BOI, EOI, QUERIES = 64003, 64004, 8


@pytest.fixture(scope="module")
def theirs() -> Kosmos2ForConditionalGeneration:
    return make_kosmos2()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    """The model folder that `kg convert` makes of the transformers folder."""
    root = tmp_path_factory.mktemp("kosmos2")
    save_kosmos2(root / "hf", theirs, max_shard_size="1MB")
    assert len(list((root / "hf").glob("model-*.safetensors"))) > 1
    conversion.to_folder(conversion.open_checked(root / "hf", root / "kg"), root / "kg")
    return root / "kg"


@pytest.fixture(scope="module")
def ours(folder) -> KosmosG:
    return load_kosmosg(folder, aligner=ALIGNER)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("length", [17, 12], ids=["text", "padded batch"])
@torch.no_grad()
def test_text_gives_the_same_hidden_states_and_logits(theirs, ours, length):
    tokens = torch.randint(4, 64001, (2, 17), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[1, length:] = 0, 1
    real = tokens != 1
    wanted = theirs.text_model(input_ids=tokens, attention_mask=real.long(), output_hidden_states=True)
    hidden = ours.hidden(tokens, real, torch.zeros_like(real))
    assert difference(hidden[real], wanted.hidden_states[-1][real]) <= TOLERANCE
    assert difference(ours.mllm.logits(hidden)[real], wanted.logits[..., :64007][real]) <= TOLERANCE


@torch.no_grad()
def test_one_image_gives_the_same_hidden_states_and_logits(theirs, ours):
    generator = torch.Generator().manual_seed(2)
    pixels, text = torch.randn(2, 3, 28, 28, generator=generator), torch.randint(4, 64001, (2, 9), generator=generator)
    text[1, -3:] = 1
    one = torch.ones(2, 1, dtype=torch.long)
    opened, closed = torch.cat([0 * one, BOI * one], 1), torch.cat([EOI * one, text], 1)
    # They fill the slots with the ids 4 to 11, we with the opening symbol: embeddings of neither are used.
    tokens = torch.cat([opened, BOI * one.repeat(1, QUERIES), closed], 1)
    foreign = torch.cat([opened, torch.arange(4, 4 + QUERIES).repeat(2, 1), closed], 1)
    slots = torch.zeros_like(tokens, dtype=torch.bool)
    slots[:, 2 : 2 + QUERIES] = True
    real = tokens != 1
    wanted = theirs(
        pixel_values=pixels,
        input_ids=foreign,
        attention_mask=real.long(),
        image_embeds_position_mask=slots,
        output_hidden_states=True,
    )
    hidden = ours.hidden(tokens, real, slots, pixels)
    assert difference(ours.resampler(ours.vision(pixels)), wanted.image_outputs.pooler_output) <= TOLERANCE
    assert difference(hidden[real], wanted.hidden_states[-1][real]) <= TOLERANCE
    assert difference(ours.mllm.logits(hidden)[real], wanted.logits[..., :64007][real]) <= TOLERANCE


@torch.no_grad()
def test_two_images_in_one_row_give_the_same_hidden_states(theirs, ours):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    image = [BOI] * (QUERIES + 1) + [EOI]
    tokens = torch.tensor([[0, 11, 12, *image, 13, *image, 14, 15]])
    slots = tokens.eq(BOI) & tokens.roll(1, 1).eq(BOI)
    assert slots.sum() == 2 * QUERIES
    embeds = theirs.get_image_features(pixels).pooler_output
    wanted = theirs.text_model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        image_embeds=embeds,
        image_embeds_position_mask=slots,
        output_hidden_states=True,
    )
    hidden = ours.hidden(tokens, torch.ones_like(slots), slots, pixels)
    assert difference(hidden, wanted.hidden_states[-1]) <= TOLERANCE
    assert difference(ours.mllm.logits(hidden), wanted.logits[..., :64007]) <= TOLERANCE


@torch.no_grad()
def test_the_comparison_finds_a_norm_that_is_a_thousandth_off(theirs, folder):
    other = load_kosmosg(folder, aligner=ALIGNER)
    other.mllm.stack.layers[1].ffn_norm.weight *= 1.001
    tokens = torch.randint(4, 64001, (1, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    wanted = theirs.text_model(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
    assert difference(other.hidden(tokens, mask, ~mask), wanted) > 10 * TOLERANCE


def test_every_weight_of_full_size_has_its_place():
    with torch.device("meta"):
        state = Kosmos2ForConditionalGeneration(Kosmos2Config()).state_dict()
    found = {name: tensor.shape for name, tensor in from_kosmos2(state).items()}
    assert (len(state), len(found)) == (886, 885)
    assert found == {name: tensor.shape for name, tensor in expected_weights(ModelConfig(), PRETRAIN).items()}
    assert sum(shape.numel() for shape in found.values()) == 1_662_375_936


# ---------------------------------------------------------------- the folder


def test_the_folder_has_kosmos2s_sizes_its_words_that_we_have_and_its_fit(folder, theirs):
    cfg = read_model_config(folder)
    assert cfg == CONFIG
    words = read_weights(folder / "model.safetensors")["mllm.embedding.weight"]
    assert torch.equal(words, theirs.text_model.model.embed_tokens.weight[:64007])
    card = (folder / "README.md").read_text("utf-8")
    assert "stage 1" in card and "kg align" in card


def test_the_snowmans_words_have_the_published_ids(folder):
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert {text: tokenizer.encode(text) for text in SNOWMAN} == SNOWMAN
    assert (tokenizer.special_ids.boi, tokenizer.special_ids.eoi) == (BOI, EOI)
    assert tokenizer.vocab_size == 64007


def test_the_published_tokenizer_gives_the_snowman_the_same_ids():
    folder = os.environ.get("KG_TOKENIZER_DIR")
    if not folder:
        pytest.skip("KG_TOKENIZER_DIR is not set: the published tokenizer files are no part of this project")
    tokenizer = Tokenizer.read(Path(folder) / "sentencepiece.bpe.model")
    assert {text: tokenizer.encode(text) for text in SNOWMAN} == SNOWMAN
    assert (tokenizer.special_ids.boi, tokenizer.special_ids.eoi, tokenizer.vocab_size) == (BOI, EOI, 64007)


def test_the_fairseq_form_gives_the_same_weights(folder, theirs, tmp_path):
    save_fairseq(tmp_path / "kosmos-2-min.pt", theirs)
    source = conversion.open_checked(tmp_path / "kosmos-2-min.pt", tmp_path / "kg")
    assert source.stage == PRETRAIN and source.cfg.image_fit == "stretch"
    conversion.to_folder(source, tmp_path / "kg")
    one, other = (read_weights(path / "model.safetensors") for path in (folder, tmp_path / "kg"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("rows", [64_008, 65_036, 65_038])
def test_a_file_with_another_number_of_words_is_refused(kg, theirs, rows, tmp_path):
    save_fairseq(tmp_path / "odd.pt", theirs, rows)
    done = kg("convert", "odd.pt", "model")
    assert done.code == 4 and f"odd.pt has {rows:,} words; KOSMOS-G has 64,007 and Kosmos-2 65,037" in done.err


def change(folder: Path, part: str, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config.setdefault(part, {}) if part else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "values", "code", "words"),
    [
        ("", {"model_type": "clip"}, 4, "is a folder of another model (clip)"),
        ("text_config", {"vocab_size": 65036}, 4, "text_config.vocab_size is 65036; it must be 65037"),
        ("text_config", {"scale_embedding": False}, 4, "text_config.scale_embedding is False"),
        ("text_config", {"activation_function": "relu"}, 4, "text_config.activation_function is relu"),
        ("vision_config", {"hidden_act": "relu"}, 4, "vision.activation"),
        ("text_config", {"layers": 4}, 4, "missing (text_model.model.layers.3."),
    ],
)
def test_another_models_folder_is_refused_in_one_line(kg, theirs, tmp_path, part, values, code, words):
    save_kosmos2(tmp_path / "hf", theirs)
    change(tmp_path / "hf", part, **values)
    done = kg("convert", "hf", "model")
    assert (done.code, done.err.count("error:"), done.err.count("\n")) == (code, 1, 1), done.err
    assert words in done.err
    assert not (tmp_path / "model").exists()


def test_an_output_map_of_its_own_is_refused(kg, theirs, tmp_path):
    from safetensors.torch import load_file, save_file

    save_kosmos2(tmp_path / "hf", theirs)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    state[OUTPUT_PROJECTION] = state["text_model.model.embed_tokens.weight"] + 1
    save_file(state, tmp_path / "hf" / "model.safetensors")
    done = kg("convert", "hf", "model")
    assert done.code == 4 and f"{OUTPUT_PROJECTION} differs from" in done.err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_line(kg, theirs, tmp_path, name):
    save_kosmos2(tmp_path / "hf", theirs)
    path = tmp_path / "hf" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = kg("convert", "hf", "model")
    assert (done.code, done.err.count("\n")) == (3, 1) and f"{path.name} is damaged" in done.err


# ---------------------------------------------------------------- images are stretched


@pytest.mark.parametrize("size", [(40, 17), (17, 40), (28, 28), (300, 100)])
def test_stretched_pixels_are_those_of_kosmos2s_own_processor(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    # use_square_size of its preprocessor_config.json is a size of two sides, without a crop.
    processor = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    wanted = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    assert np.abs(to_vision_pixels(image, 28, "stretch") - wanted).max() < 1e-5


# ---------------------------------------------------------------- all three stages on it


def test_a_stage_1_folder_is_named_as_one_where_it_cannot_be_used(kg, folder):
    for args in (["generate", "a cat"], ["encode", "a cat", "-o", "cat.safetensors"]):
        done = kg(*args, "--model", folder)
        assert (done.code, done.err.count("\n")) == (4, 1), done.err
        assert "is the result of stage 1: it has no AlignerNet yet. `kg align` makes one" in done.err
    with pytest.raises(IncompatibleError, match="the result of stage 1"):
        load_kosmosg(folder)
    with pytest.raises(IncompatibleError, match="the result of stage 1"):
        make_stage(load_recipe("smoke/instruct", [f"init_from.model={folder}"]), lambda number, seed: [])
    assert kg("inspect", folder).code == 0


# ---------------------------------------------------------------- size


@pytest.mark.slow
def test_a_full_size_folder_converts_in_little_memory(tmp_path):
    size = write_random_kosmos2(tmp_path / "hf", Kosmos2Config())
    assert size // 10**7 == 665
    peak, seconds, printed = run_measured("convert", tmp_path / "hf", tmp_path / "model")
    print(f"{size / 1e9:.2f} GB: peak {peak / size:.2f} x file, {seconds:.0f} s")
    assert "stage 1 (pretraining): 885 weights, 885 read" in printed
    assert peak <= MEMORY_RATIO * size
    assert read_model_config(tmp_path / "model") == ModelConfig(image_fit="stretch")

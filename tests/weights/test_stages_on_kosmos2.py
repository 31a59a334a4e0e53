"""From a folder that transformers saved to an image: kg convert, kg align, kg instruct, kg generate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import FakeHub, go_online, serve
from kosmos2_files import make_kosmos2, save_kosmos2
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.recipe import dump_recipe, load_recipe
from kgcli.training.stages import make_stage
from kgcli.training.stages.clip import clip_tokenizer
from kgcli.training.stages.kosmosg import PretrainStage
from kgcli.weights.config import read_model_config
from kgcli.weights.safetensors import read_weights

LENGTH = 8  # tokens of the decoder's text
ALIGNER = {"width": 16, "num_heads": 2, "ffn_width": 32, "num_layers": 1, "num_queries": LENGTH, "max_positions": 130}
SETTINGS = {"steps": 2, "log_every": 1, "save_every": 2, "sample_every": 100, "image_size": 16}
SETTINGS |= {"optim": {"warmup_steps": 1}}


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory) -> Path:
    """A transformers folder."""
    folder = tmp_path_factory.mktemp("stage1") / "hf"
    save_kosmos2(folder, make_kosmos2())
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """The tokenizer and text encoder of a decoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    tokenizer = clip_tokenizer(["a red cat on the beach", "two dogs in the snow"], 300, LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes, **ids)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def no_texts(num: int, seed: int) -> list[str]:
    """Sentences for tokenizers, of which these stages make none."""
    return []


def recipe(path: Path, stage: str, kinds: dict[str, float], init_from: dict[str, object], **more: object) -> Path:
    data = {"kinds": kinds, "batch_size": 2, "num_workers": 0, **more.pop("data", {})}
    start = {part: str(folder) for part, folder in init_from.items()}
    values = {"stage": stage, "output_dir": str(path.parent / stage), "init_from": start, "data": data}
    path.write_text(yaml.safe_dump(values | SETTINGS | more))
    return path


def test_kosmos2_is_aligned_instructed_and_generates(kg, stage_1, text, tiny_model, cat, tmp_path):
    decoder = tiny_model / "decoder"
    assert kg("convert", stage_1, "stage1").code == 0
    align = recipe(
        tmp_path / "align.yaml",
        "align",
        {"text": 1.0},
        {"model": tmp_path / "stage1", "text": text},
        parts={"aligner": ALIGNER},
    )
    done = kg("align", align)
    assert done.code == 0, done.err
    assert "stage1 has no AlignerNet, as any result of stage 1: initialising it randomly" in done.err
    instruct = recipe(
        tmp_path / "instruct.yaml",
        "instruct",
        {"compositional": 1.0},
        {"model": tmp_path / "align" / "final", "decoder": decoder},
        data={"pool": 4},
    )
    done = kg("instruct", instruct)
    assert done.code == 0, done.err
    assert read_model_config(tmp_path / "instruct" / "final").decoder == "decoder"  # the one it was trained for
    size = ["-W", "16", "-H", "16", "--steps", "2", "-g", "3", "--scheduler", "ddim", "-s", "1"]
    done = kg("generate", f"a <image:{cat}> in the snow", "--model", "instruct/final", *size, "-o", "out.png")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "out.png").size == (16, 16)


def test_an_aligner_that_is_there_is_not_made_anew(text, tiny_model, tmp_path, caplog):
    shorter = shutil.copytree(text, tmp_path / "text")  # of the length of that AlignerNet
    config = CLIPTextConfig.from_pretrained(text / "text_encoder", max_position_embeddings=4)
    CLIPTextModel(config).save_pretrained(shorter / "text_encoder")
    found = load_recipe("smoke/align", [f"init_from.model={tiny_model}", f"init_from.text={shorter}"])
    stage = make_stage(found, no_texts)  # a model that generates has half an AlignerNet
    assert "has no aligner.decoder, as any result of stage 3: initialising it randomly" in caplog.text
    weights = read_weights(tiny_model / "model.safetensors")
    encoder = stage.model.aligner.encoder.state_dict()
    assert encoder and all(torch.equal(tensor, weights[f"aligner.encoder.{name}"]) for name, tensor in encoder.items())
    assert stage.model.aligner.decoder is not None


# ---------------------------------------------------------------- stage 1 from CLIP, and from a model


def clip_sizes(**more: object) -> dict[str, object]:
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"image_size": 16, "patch_size": 8} | more


@pytest.fixture
def tokenizer(tiny_model: Path) -> Path:
    return tiny_model / "tokenizer"


def pretrain(clip: Path | str, tokenizer: Path | str | None) -> PretrainStage:
    vision = "{image_size: 16, patch_size: 8, width: 16, num_heads: 2, num_layers: 2}"
    overrides = [f"init_from.clip={clip}", f"model.vision={vision}", "options.vision_blocks=1"]
    overrides += [] if tokenizer is None else [f"init_from.tokenizer={tokenizer}"]
    return make_stage(load_recipe("smoke/pretrain", overrides), no_texts)


@pytest.mark.parametrize("kind", ["whole", "vision alone"])
def test_stage_1_starts_from_a_transformers_clip_folder(kind, tokenizer, tmp_path):
    torch.manual_seed(1)
    config = CLIPVisionConfig(**clip_sizes())
    words = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    both = CLIPConfig(vision_config=config.to_dict(), text_config=words | {"num_attention_heads": 2})
    clip = CLIPModel(both) if kind == "whole" else CLIPVisionModel(config)
    clip.save_pretrained(tmp_path / "clip")
    stage = pretrain(tmp_path / "clip", tokenizer)
    tower = clip.vision_model if kind == "whole" else clip
    assert torch.equal(stage.model.vision.positions, tower.embeddings.position_embedding.weight)
    stage.export(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "tokenizer").iterdir()] == ["sentencepiece.model"]
    assert "vision.positions" in read_weights(tmp_path / "out" / "model.safetensors")


def test_stage_1_continues_from_a_model(tiny_model, tmp_path):
    recipe = load_recipe("smoke/pretrain", [f"init_from={{model: {tiny_model}}}"])
    stage = make_stage(recipe, no_texts)
    weights = read_weights(tiny_model / "model.safetensors")
    own = stage.model.state_dict()
    assert weights and all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert stage.model.cfg == read_model_config(tiny_model)
    stage.export(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "tokenizer").iterdir()] == ["sentencepiece.model"]
    # The recipe that a run saves, where every default is written out, makes the same model.
    (tmp_path / "saved.yaml").write_text(dump_recipe(recipe))
    again = make_stage(load_recipe(str(tmp_path / "saved.yaml")), no_texts)
    assert again.model.cfg == stage.model.cfg


def test_a_model_beside_a_clip_is_refused():
    both = load_recipe("smoke/pretrain", ["init_from.model=nano"])
    with pytest.raises(ConfigError, match=r"init_from='\{model: nano\}' to continue from the model"):
        make_stage(both, no_texts)


def test_stage_1_starts_from_the_hub(tokenizer, tmp_path, monkeypatch):
    clip = CLIPVisionModel(CLIPVisionConfig(**clip_sizes()))
    clip.save_pretrained(tmp_path / "clip")
    files = {name: (tmp_path / "clip" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files["pytorch_model.bin"] = b"never fetched"
    words = {"sentencepiece.bpe.model": (tokenizer / "sentencepiece.model").read_bytes(), "README.md": b"no"}
    with serve(FakeHub({"openai/tiny": files, "someone/words": words})) as hub:
        go_online(monkeypatch, hub, tmp_path / "cache")
        stage = pretrain("openai/tiny", "someone/words")
        assert torch.equal(stage.model.vision.positions, clip.embeddings.position_embedding.weight)
        assert hub.ranges("pytorch_model.bin") == [] == hub.ranges("README.md")
    stage.export(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "tokenizer").iterdir()] == ["sentencepiece.bpe.model"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pretrain("openai/tiny", "someone/words").tokenizer.vocab_size == stage.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("clip", "named", "error", "words"),
    [
        ({"hidden_act": "gelu"}, True, IncompatibleError, "activation is gelu, not quick_gelu; set model.vision"),
        ({"num_attention_heads": 4}, True, IncompatibleError, "num_heads is 4, not 2"),
        ({}, False, ConfigError, "has no tokenizer for the MLLM; name one in init_from.tokenizer"),
    ],
)
def test_a_clip_that_does_not_fit_is_one_clear_error(clip, named, error, words, tokenizer, tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**clip_sizes(**clip))).save_pretrained(tmp_path / "clip")
    with pytest.raises(error, match=words):
        pretrain(tmp_path / "clip", tokenizer if named else None)


def test_a_folder_without_a_clip_is_named(tokenizer, tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(MissingError, match=r"holds no CLIP: there is no config\.json"):
        pretrain(tmp_path / "clip", tokenizer)
    with pytest.raises(MissingError, match="openai/nowhere.*not in the local cache"):
        pretrain("openai/nowhere", tokenizer)
    with pytest.raises(MissingError, match="kosmos-2 is not on this machine; `kg models pull kosmos-2` fetches it"):
        pretrain("kosmos-2", tokenizer)

"""What the published code makes of prompts, training sequences and pictures, held against ours; no file is unknown."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from kgcli.config import ModelConfig
from kgcli.data.images import to_vae_pixels, to_vision_pixels
from kgcli.data.prompt import encode
from kgcli.data.tokenizer import Tokenizer
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.published.names import is_dropped, to_published

IMAGE_MARK = "<i>"  # an image's place in a golden prompt
CROPS = {"gpt": slice(100, 116), "diff": slice(250, 266)}  # of the golden picture cuttings, both axes
PIXEL_ATOL = 1e-5  # of normalised pixels; one grey level is 0.008 or more
PICTURE_KEY = re.compile(r"(img\w+)_(gpt|diff)_(stride(\d+)|crop|mean|std)")
# Of the published model, by our names.
PARAMETERS = {"mllm.": 1_340_180_480, "vision.": 303_179_776, "resampler.": 19_015_680}
PARAMETERS |= {"aligner.encoder.": 225_461_760, "aligner.decoder.": 250_569_728}


@pytest.fixture
def tokenizer() -> Tokenizer:
    folder = os.environ.get("KG_TOKENIZER_DIR")
    if not folder:
        pytest.skip("KG_TOKENIZER_DIR is not set: the published tokenizer files are no part of this project")
    return load_tokenizer(folder)


@cache
def load_tokenizer(folder: str) -> Tokenizer:
    """One tokenizer per run."""
    return Tokenizer.load(Path(folder))


@pytest.mark.parametrize("path", golden.top_files("tokenization*.json"), ids=lambda path: path.stem)
def test_prompts_become_the_published_ids(path: Path, tokenizer: Tokenizer) -> None:
    content = json.loads(path.read_text("utf-8"))
    special = dict(content["special_ids"])
    num_slots = special.pop("image_token_length")
    assert tokenizer.vocab_size == special.pop("vocab_size")
    assert tokenizer.special_ids.model_dump() == special
    for example in content["examples"]:
        sequence = encode(fragments_of(example["prompt"]), tokenizer, num_slots=num_slots)
        assert list(sequence.token_ids) == example["src_tokens"], example["prompt"]
        assert [int(slot) for slot in sequence.image_mask] == example["img_gpt_input_mask"], example["prompt"]
        negative = encode([example["negative_prompt"]], tokenizer, num_slots=num_slots)
        assert list(negative.token_ids) == example["negative_tokens"], example["negative_prompt"]
        assert fragments_of(example["prompt"]).count(None) == example["num_images"]


@pytest.mark.parametrize("path", golden.top_files("loaders*.json"), ids=lambda path: path.stem)
def test_training_sequences_are_the_published_ones(path: Path, tokenizer: Tokenizer) -> None:
    content = json.loads(path.read_text("utf-8"))
    cases = [(entry["caption"], [entry["caption"]], entry) for entry in content["laion"]]
    cases += [(entry["edit_instruction"], edit_fragments(entry), entry) for entry in content["instructpix2pix"]]
    cases += [(entry["caption"], read_back(entry, tokenizer), entry) for entry in content["openimage"]]
    for name, fragments, entry in cases:
        if "tokens" not in entry:
            assert entry["num_docs"] == 0, name  # the published loader refuses or loses it
            continue
        sequence = encode(fragments, tokenizer, num_slots=slots_of(entry), eos=True)
        assert list(sequence.token_ids) == entry["tokens"], name
        assert [int(slot) for slot in sequence.image_mask] == entry["input_mask"], name


@pytest.mark.parametrize("path", golden.top_files("image_preprocess*.npz"), ids=lambda path: path.stem)
def test_pictures_become_the_published_pixels(path: Path) -> None:
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    for key in [key for key in content if not key.endswith("_source")]:
        match = PICTURE_KEY.fullmatch(key)
        assert match, f"{path.name} holds {key}, which nothing here checks"
        picture, kind, what, stride = match.groups()
        pixels = transformed(content, picture, kind)
        ours = cutting(pixels, kind, what, stride)
        np.testing.assert_allclose(ours, content[key], rtol=0, atol=PIXEL_ATOL, err_msg=key)


@pytest.mark.parametrize("stage", ["align", "final"])
def test_full_size_weights_have_the_published_names_and_shapes(stage: str) -> None:
    path = golden.FOLDER / f"official_keys_{stage}.json"
    if not path.is_file():
        pytest.skip(f"{golden.FOLDER} holds no {path.name}")
    published = {name: shape for name, shape in json.loads(path.read_text()).items() if not is_dropped(name)}
    with torch.device("meta"):
        model = KosmosG(ModelConfig(), with_aligner_decoder=stage == "align")
    assert {name: list(tensor.shape) for name, tensor in to_published(model.state_dict()).items()} == published
    for part, number in PARAMETERS.items():
        found = sum(p.numel() for name, p in model.named_parameters() if name.startswith(part))
        assert found == (0 if part == "aligner.decoder." and stage == "final" else number), part


# File name patterns and what checks them; a file that fits none is an error.
KNOWN = {
    "README.md": "text",
    "tokenization*.json": "here",
    "loaders*.json": "here",
    "loader_pieces.json": "test_loader_parity.py",
    "image_preprocess*.npz": "here",
    "official_keys_align.json": "here",
    "official_keys_final.json": "here",
    "official_keys_sd15_expected.json": "test_checkpoint_parity.py",
    "tiny/config.json": "every test",
    "tiny/*.safetensors": "test_model_parity.py",
    "tiny/checkpoint_*.pt": "test_checkpoint_parity.py",
}


@pytest.mark.parametrize(
    "path", sorted(path for path in golden.FOLDER.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_every_file_is_known(path: Path) -> None:
    name = path.relative_to(golden.FOLDER).as_posix()
    checkers = [checker for pattern, checker in KNOWN.items() if Path(name).match(pattern) and fits(name, pattern)]
    assert checkers, f"{name} is of no known kind: {', '.join(KNOWN)}"


def fits(name: str, pattern: str) -> bool:
    """Whether a name lies as deep as its pattern."""
    return name.count("/") == pattern.count("/")


def fragments_of(prompt: str) -> list[str | None]:
    """A golden prompt's texts, and None for each image."""
    fragments: list[str | None] = []
    for text in prompt.split(IMAGE_MARK):
        fragments += [text, None]
    return fragments[:-1]


def edit_fragments(entry: dict[str, Any]) -> list[str | None]:
    """Caption if it is kept, picture, instruction."""
    caption: list[str | None] = [] if entry["drop_input_caption"] else [entry["input_caption"]]
    return [*caption, None, entry["edit_instruction"]]


def slots_of(entry: dict[str, Any]) -> int:
    """Slots per image: the length of a run in the mask."""
    runs = {len(list(run)) for value, run in groupby(entry.get("input_mask", ())) if value}
    assert len(runs) <= 1, runs
    return runs.pop() if runs else 1


def read_back(entry: dict[str, Any], tokenizer: Tokenizer) -> list[str | None]:
    """The texts and images that a sequence was made of; which they are is the data builder's choice."""
    special, fragments, text = tokenizer.special_ids, [], []
    for token in entry.get("tokens", ())[1:]:
        if token in (special.boi, special.eos):
            fragments += [tokenizer.decode(text)] if text else []
            text = []
        elif token == special.eoi:
            fragments.append(None)
        else:
            text.append(token)
    return fragments


def transformed(content: dict[str, NDArray[Any]], picture: str, kind: str) -> NDArray[np.float32]:
    """A golden picture as the vision tower or the VAE reads it, at the size its golden sample says."""
    strided = next(key for key in content if key.startswith(f"{picture}_{kind}_stride"))
    size = content[strided].shape[-1] * int(strided.rpartition("stride")[2])
    image = Image.fromarray(content[f"{picture}_source"])
    return to_vision_pixels(image, size) if kind == "gpt" else to_vae_pixels(image, size)


def cutting(pixels: NDArray[np.float32], kind: str, what: str, stride: str | None) -> NDArray[Any]:
    """The part or figure of a picture that the golden data keep."""
    if stride:
        return pixels[:, :: int(stride), :: int(stride)]
    if what == "crop":
        return pixels[:, CROPS[kind], CROPS[kind]]
    figure = np.mean if what == "mean" else np.std
    return np.asarray(figure(pixels.astype(np.float64), axis=(1, 2)))

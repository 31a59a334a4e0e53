import numpy as np
import open_clip
import pytest
import torch
from pixels import by_hand, make_image

from kgcli.errors import IncompatibleError, UsageError
from kgcli.evaluation.extractors.dino import DINO, DinoExtractor, dino_transform
from kgcli.evaluation.extractors.published import (
    ClipExtractor,
    clip_tokens,
    clip_transform,
)
from kgcli.evaluation.extractors.weight_files import Weights


@pytest.fixture(scope="module")
def dino() -> DinoExtractor:
    return DinoExtractor.random_weights(DINO)


@pytest.mark.parametrize("size", [(512, 512), (300, 210), (128, 200)])
def test_dinos_pixels_are_pillows_bit_for_bit(size):
    expected = by_hand(make_image(size), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert np.array_equal(dino_transform()(make_image(size)).numpy(), expected)


@pytest.mark.parametrize("size", [(512, 512), (300, 210), (128, 200)])
def test_clips_pixels_are_pillows_bit_for_bit(size):
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    assert np.array_equal(clip_transform()(make_image(size)).numpy(), by_hand(make_image(size), 224, mean, std))


def test_clips_pixels_are_open_clips():
    preprocess = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(), is_train=False)
    assert torch.equal(clip_transform()(make_image()), preprocess(make_image()))


def test_dino_gives_the_class_token_after_the_norm(dino):
    row = dino.images([make_image()])[0]
    with torch.inference_mode():
        tokens = dino._model.forward_features(dino_transform()(make_image())[None])
    expected = torch.nn.functional.normalize(tokens[0, 0], dim=0).numpy()
    assert row.shape == (384,) and row.dtype == np.float32
    assert np.allclose(row, expected, atol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours(dino):
    alone = dino.images([make_image(seed=1)])[0]
    among = dino.images([make_image(seed=0), make_image(seed=1), make_image(seed=2)])[1]
    assert np.array_equal(alone, among)


def test_dinos_published_names_fit_and_others_do_not(dino, tmp_path):
    """The official file holds the backbone's weights by timm's names, and no others."""
    state = dino._model.state_dict()
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.mlp.fc2.bias", "norm.weight"} <= set(state)
    assert not any(name.startswith(("head", "fc_norm")) for name in state)
    torch.save(state, tmp_path / "dino.pth")
    loaded = DinoExtractor(DINO, Weights(tmp_path / "dino.pth", "abc"))
    assert np.array_equal(loaded.images([make_image()]), dino.images([make_image()]))
    assert loaded.facts()["weights_sha256"] == "abc" and dino.facts()["weights_sha256"] == "random-0"
    torch.save({"head": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(IncompatibleError, match="does not hold DINO"):
        DinoExtractor(DINO, Weights(tmp_path / "other.pth", ""))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(IncompatibleError, match="does not hold DINO"):
        DinoExtractor(DINO, Weights(tmp_path / "text.pth", ""))


def test_random_weights_are_seeded_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = DinoExtractor.random_weights(DINO, 1).images([make_image()])
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(one, DinoExtractor.random_weights(DINO, 1).images([make_image()]))


def test_a_text_that_clip_would_cut_is_refused():
    assert clip_tokens(["a dog " * 37]).shape == (1, 77)
    with pytest.raises(UsageError, match="82 tokens"):
        clip_tokens(["a dog " * 40])


@pytest.mark.slow
def test_clip_reads_images_and_texts_into_one_space(tmp_path):
    """The true ViT-B/32: a file of OpenAI's kind gives the rows of the network it was made from."""
    clip = ClipExtractor.random_weights()
    assert clip._model.transformer.resblocks[0].mlp.gelu.__class__.__name__ == "QuickGELU"
    rows, texts = clip.images([make_image(seed=1)]), clip.texts(["a dog", "a cat"])
    assert rows.shape == (1, 512) and texts.shape == (2, 512)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1)
    assert np.array_equal(clip.texts(["a cat"])[0], texts[1])
    torch.save(clip._model.state_dict(), tmp_path / "ViT-B-32.pt")
    del clip
    loaded = ClipExtractor(Weights(tmp_path / "ViT-B-32.pt", "abc"))
    assert np.allclose(loaded.images([make_image(seed=1)]), rows, atol=2e-3)  # OpenAI's files hold half precision

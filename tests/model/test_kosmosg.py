"""Laws of the whole encoder: batching, missing images, the null condition, gradient reach, model folders."""

import json

import pytest
import torch
from tiny_model import CONFIG, make_model, make_prompts

from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.weights.load import load_kosmosg, save_kosmosg


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def folder(model, tmp_path):
    save_kosmosg(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_prompt_means_the_same_alone_and_in_a_padded_batch(model):
    tokens, token_mask, image_mask, images = make_prompts()
    together = model.encode(tokens, token_mask, image_mask, images)
    first_image = 0
    for row in range(len(tokens)):
        length = int(token_mask[row].sum())
        num_images = int(image_mask[row].sum()) // CONFIG.resampler.num_queries
        own = images[first_image : first_image + num_images]
        first_image += num_images
        alone = model.encode(*(x[row : row + 1, :length] for x in (tokens, token_mask, image_mask)), own)
        torch.testing.assert_close(alone[0], together[row])


def test_the_order_of_prompts_in_a_batch_does_not_matter(model):
    tokens, token_mask, image_mask, images = make_prompts()
    turned = model.encode(*(x.flip(0) for x in (tokens, token_mask, image_mask)), images[[2, 0, 1]])
    torch.testing.assert_close(turned.flip(0), model.encode(tokens, token_mask, image_mask, images))


def test_no_image_may_be_none_or_an_empty_tensor(model):
    tokens = torch.tensor([[0, 12, 13]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    expected = model.encode(tokens, mask, ~mask)
    assert torch.equal(model.encode(tokens, mask, ~mask, torch.empty(0, 3, 16, 16)), expected)


@pytest.mark.parametrize("num_images", [0, 2, 4])
def test_images_and_their_places_must_be_as_many(model, num_images):
    tokens, token_mask, image_mask, images = make_prompts()
    with pytest.raises(UsageError, match=rf"9 image slots but {num_images} image"):
        model.encode(tokens, token_mask, image_mask, torch.cat([images, images])[:num_images])


def test_the_null_condition_is_the_start_token_alone(model):
    null = model.encode_null(2)
    tokens = torch.tensor([[0, 1, 1, 1], [0, 12, 13, 14]])
    token_mask = tokens != 1
    padded = model.encode(tokens, token_mask, torch.zeros_like(token_mask))
    assert null.shape == padded.shape
    assert torch.equal(null[0], null[1])
    torch.testing.assert_close(padded[0], null[0])
    assert not torch.allclose(padded[1], null[0])


def test_the_gradient_reaches_what_trains_and_nothing_else(model):
    trained = ("mllm.", "resampler.", "aligner.encoder.", "vision.blocks.1.", "vision.final_norm.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    conditioning = model.encode(*make_prompts())
    (conditioning * torch.randn_like(conditioning)).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith(trained)}


def test_nothing_is_recorded_where_only_the_aligner_trains(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("aligner."))
    assert not model.hidden(*make_prompts()).requires_grad
    assert model.encode(*make_prompts()).requires_grad


def test_a_saved_model_is_the_same_model(model, folder):
    loaded = load_kosmosg(folder)
    assert loaded.cfg == model.cfg
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.encode(*make_prompts()), model.encode(*make_prompts()))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_can_be_kept_in_half_precision(model, tmp_path):
    save_kosmosg(model, tmp_path, dtype=torch.float16)
    loaded = load_kosmosg(tmp_path)
    assert loaded.mllm.embedding.weight.dtype == torch.float32
    assert torch.equal(loaded.mllm.embedding.weight, model.mllm.embedding.weight.half().float())


def test_the_aligner_decoder_is_omitted_unless_requested(tmp_path):
    save_kosmosg(make_model(with_aligner_decoder=True), tmp_path)
    assert load_kosmosg(tmp_path).aligner.decoder is None
    assert load_kosmosg(tmp_path, with_aligner_decoder=True).aligner.decoder is not None


def test_absent_parts_are_refused_unless_they_are_to_be_fresh(model, folder):
    with pytest.raises(IncompatibleError, match=r"missing \(aligner\.decoder\."):
        load_kosmosg(folder, with_aligner_decoder=True)
    grown = load_kosmosg(folder, with_aligner_decoder=True, fresh=("aligner.decoder.",))
    assert torch.equal(grown.encode_null(), model.encode_null())
    assert torch.isfinite(grown.aligner.decode(grown.encode_null(), 4)).all()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("fault", ["absent", "cut", "empty"])
def test_a_missing_or_damaged_file_is_one_clear_error(folder, name, fault):
    path = folder / name
    content = path.read_bytes()
    path.unlink() if fault == "absent" else path.write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    with pytest.raises(MissingError, match=name) as caught:
        load_kosmosg(folder)
    assert "\n" not in str(caught.value)


def test_a_model_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match="there is no model folder"):
        load_kosmosg(tmp_path / "absent")


def test_sizes_that_do_not_fit_the_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["mllm"]["num_layers"] = 3
    config["aligner"]["num_queries"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match=r"20 missing \(mllm\.stack\.layers\.2.*1 of another shape"):
        load_kosmosg(folder)


def test_a_config_of_another_version_is_refused(folder):
    config = json.loads((folder / "config.json").read_text()) | {"unheard_of": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match="unheard_of"):
        load_kosmosg(folder)

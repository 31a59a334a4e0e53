"""Laws of the maps: the image is the one that is generated without them, and they follow what happens to it."""

import numpy as np
import pytest
import torch

from kgcli import engine
from kgcli.config import SamplingConfig
from kgcli.errors import UsageError
from kgcli.inference.explain import page
from kgcli.inference.explain.maps import explain
from kgcli.inference.request import make_request

STEPS = SamplingConfig(num_inference_steps=4)
PAIR = "<image:nano/dog.png> and <image:nano/robot.png> on the beach"
TOP = 0.75


@pytest.fixture(scope="module")
def model():
    return engine.load(device="cpu")


@pytest.fixture(scope="module")
def pair(model):
    return explain(model, make_request(model.folder, PAIR, sampling=STEPS))


def test_the_image_and_the_randomness_are_those_of_generate(model, pair):
    state = torch.get_rng_state()
    again = explain(model, pair.request, words=False, num_steps=1)
    ((_, image),) = engine.generate(model, [pair.request])
    assert pair.image.tobytes() == image.tobytes() == again.image.tobytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_one_map_per_part_at_the_size_of_the_image(pair):
    assert pair.maps_MYX.shape == (6, 128, 128) and pair.references == [0, 1]
    assert np.isfinite(pair.maps_MYX).all() and (pair.maps_MYX >= 0).all()
    assert sum(pair.shares[:2]) == pytest.approx(1) and sum(pair.shares[2:]) == pytest.approx(1)
    assert set(np.unique(pair.regions())) == {1, 2}


def test_a_part_that_changes_nothing_has_an_empty_map(model):
    request = make_request(model.folder, "a cat <image:nano/dog.png|weight=0>", sampling=STEPS)
    explanation = explain(model, request, words=False)
    assert explanation.maps_MYX.max() == 0 and explanation.shares == [0.0]


def test_another_reference_changes_the_region_of_the_one_it_replaces(model, pair):
    """The small version of the figure in docs/explain.md."""
    before = np.asarray(pair.image, np.float32)
    regions = pair.regions()
    changes = []
    for text in (PAIR.replace("dog", "teapot"), PAIR.replace("robot", "teapot")):
        ((_, image),) = engine.generate(model, [make_request(model.folder, text, sampling=STEPS)])
        changes.append(np.abs(np.asarray(image, np.float32) - before).mean(axis=-1))
    for index, change in enumerate(changes):
        top = pair.maps_MYX[index] >= np.quantile(pair.maps_MYX[index], TOP)
        assert change[top].mean() > 2 * change[~top].mean()
        assert change[regions == index + 1].mean() > changes[1 - index][regions == index + 1].mean()
        assert np.corrcoef(pair.maps_MYX[index].ravel(), change.ravel())[0, 1] > 0.5


def test_adapters_take_part(model):
    from kgcli.inference.adapters.named import read_adapters

    adapters = read_adapters(model.folder, loras=["nano/comic"], controls=["canny=nano/dog.png"])
    request = make_request(model.folder, "a dog in the snow", sampling=STEPS, adapters=adapters)
    explanation = explain(model, request)
    ((_, image),) = engine.generate(model, [request])
    assert explanation.image.tobytes() == image.tobytes() and explanation.maps_MYX.shape == (5, 128, 128)


def test_without_guidance_and_with_few_steps(model):
    sampling = SamplingConfig(num_inference_steps=1, guidance_scale=1.0)
    assert explain(model, make_request(model.folder, PAIR, sampling=sampling), words=False).maps_MYX.max() > 0


def test_nothing_to_explain_is_an_error(model):
    with pytest.raises(UsageError, match="nothing to explain"):
        explain(model, make_request(model.folder, "...", sampling=STEPS))
    with pytest.raises(UsageError, match="num_steps is 0"):
        explain(model, make_request(model.folder, "a cat", sampling=STEPS), num_steps=0)
    words_only = explain(model, make_request(model.folder, "a cat", sampling=STEPS))
    with pytest.raises(UsageError, match="no image"):
        words_only.regions()


def test_overlays_are_coloured_where_the_map_is(pair):
    first, second, *words = page.overlays(pair)
    assert (first.label, second.label) == ("dog.png", "robot.png") and first.image.size == (256, 256)
    assert [one.label for one in words] == ["and", "on", "the", "beach"]
    pixels = np.asarray(first.image, np.float32)
    saturation = (pixels.max(axis=-1) - pixels.min(axis=-1))[1::2, 1::2]
    assert np.corrcoef(saturation.ravel(), pair.maps_MYX[0].ravel())[0, 1] > 0.8


def test_the_page_needs_nothing_else(pair):
    html = page.to_html(pair, page.overlays(pair))
    assert html.count("<img") == html.count('src="data:image/png;base64,')
    assert "http" not in html and "<script" not in html and "robot.png" in html


def test_what_is_typed_is_escaped(model):
    text = "a <image:nano/dog.png> \\<script> & 'co'"
    explanation = explain(model, make_request(model.folder, text, sampling=STEPS), words=False)
    html = page.to_html(explanation, page.overlays(explanation))
    assert "<script" not in html and "&lt;script&gt; &amp; " in html

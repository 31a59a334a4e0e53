"""Laws of the page's settings: within its limits, and only what it offers."""

import pytest
from app_images import item

from kgcli.app.limits import MAX_IMAGES
from kgcli.app.settings import Offer, check_sampling, make_adapters, read_offer, read_seeds
from kgcli.app.uploads import read_uploads
from kgcli.errors import UsageError
from kgcli.weights.folder import open_model


@pytest.fixture(scope="module")
def nano():
    return open_model()


def test_the_shipped_adapters_are_offered_to_the_model_they_fit(nano, tiny_model):
    assert read_offer(nano, [], []) == Offer(loras={"nano/comic": "nano/comic"}, controls={"canny": None})
    assert read_offer(open_model(str(tiny_model)), [], []) == Offer()


def test_empty_settings_are_the_models(nano):
    assert check_sampling(steps=None, width=0, scheduler="").given() == {}
    assert check_sampling(steps=20.0, width=64).given() == {"num_inference_steps": 20, "width": 64}
    assert check_sampling(steps=0, height=0, guidance_scale=0).given() == {"guidance_scale": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1000}, "at most 200"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": float("inf")}, "whole number"),
        ({"width": float("nan")}, "whole number"),
        ({"width": 2048}, "at most 1024"),
        ({"height": 33}, "multiple of 8"),
        ({"guidance_scale": -3}, "guidance-scale is -3"),
        ({"guidance_scale": "x"}, "guidance_scale"),
        ({"scheduler": "/etc/passwd"}, "scheduler is /etc/passwd"),
    ],
)
def test_settings_outside_the_limits_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        check_sampling(**values)


def test_seeds_are_consecutive_or_random():
    assert read_seeds(7, 3) == [7, 8, 9]
    assert len(set(read_seeds(-1, 2) + read_seeds(None, 2))) == 4
    for seed, num in ((1, 0), (1, MAX_IMAGES + 1), (1.5, 1), ("x", 1), (2**63 - 1, 2), (True, 1)):
        with pytest.raises(UsageError):
            read_seeds(seed, num)


def test_only_what_is_offered_can_be_chosen(nano):
    offer = read_offer(nano, [], [])
    image = read_uploads([item()], most=1)
    adapters = make_adapters(nano, offer, lora="nano/comic", lora_scale=0.5, control="canny", control_images=image)
    assert [lora.scale for lora in adapters.loras] == [0.5]
    assert [(one.kind, one.image.name, one.ready) for one in adapters.controls] == [("canny", "cat.png", False)]
    for given in (
        {"lora": "/etc/passwd"},
        {"lora": "../x.safetensors"},
        {"lora": ["x"]},
        {"lora": {}},
        {"control": ["canny"], "control_images": image},
        {"control": "depth", "control_images": image},
        {"control": "canny"},
        {"lora": "nano/comic", "lora_scale": 99},
        {"control": "canny", "control_images": image, "control_scale": -1},
    ):
        with pytest.raises(UsageError):
            make_adapters(nano, offer, **given)

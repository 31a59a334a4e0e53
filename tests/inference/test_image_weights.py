"""The dial of an image's weight: exact at 0, 1 and 2, a mean in between."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kgcli import engine
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.inference.image_weights import weighted_terms
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.inference.request import make_request
from kgcli.weights.folder import open_model

RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (12, 30), "blue")


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return KosmosGPipeline.from_pretrained(tiny_model)


def embeds_of(pipeline, text, *images):
    return pipeline.encode_prompt([Prompt.parse(text)], [list(images)])[0]


def test_zero_is_the_prompt_without_the_image(pipeline):
    zero = embeds_of(pipeline, "a cat <image:x|weight=0> in the snow", RED)
    assert torch.equal(zero, embeds_of(pipeline, "a cat <image:y|weight=0> in the snow", BLUE))
    without = pipeline.encode_prompt([Prompt(parts=("a cat ", " in the snow"))], [[]])[0]
    assert torch.equal(zero, without)


def test_one_is_the_prompt_as_it_is_to_the_bit(pipeline):
    plain = embeds_of(pipeline, "a <image:x> and a <image:x>", RED, BLUE)
    assert torch.equal(plain, embeds_of(pipeline, "a <image:x|weight=1> and a <image:x|weight=1.0>", RED, BLUE))


def test_two_is_the_image_alone(pipeline):
    two = embeds_of(pipeline, "a cat <image:x|weight=2> in the snow", RED)
    assert torch.equal(two, embeds_of(pipeline, "<image:x>", RED))


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.25, 1.75])
def test_in_between_it_is_a_mean(pipeline, weight):
    zero, one, two = (embeds_of(pipeline, f"a <image:x|weight={w}> here", RED) for w in (0, 1, 2))
    low, high = (zero, one) if weight < 1 else (one, two)
    expected = torch.lerp(low, high, weight % 1)
    torch.testing.assert_close(embeds_of(pipeline, f"a <image:x|weight={weight}> here", RED), expected)


def test_each_image_has_its_own(pipeline):
    """An image of weight 0 leaves the others as if it had never been there."""
    off = embeds_of(pipeline, "a <image:x> and <image:x|weight=0>", RED, BLUE)
    assert torch.equal(off, pipeline.encode_prompt([Prompt(parts=("a ", ImageRef(path="x"), " and "))], [[RED]])[0])
    neither = embeds_of(pipeline, "a <image:x|weight=0> and <image:x|weight=0>", RED, BLUE)
    assert torch.equal(neither, pipeline.encode_prompt([Prompt(parts=("a ", " and "))], [[]])[0])


def test_a_weight_beside_plain_prompts_leaves_them_alone(pipeline):
    prompts = [Prompt.parse(text) for text in ("a <image:x>", "a <image:x|weight=0.5>", "a cat")]
    together = pipeline.encode_prompt(prompts, [[RED], [RED], []])[0]
    for row, prompt in enumerate(prompts):
        alone = pipeline.encode_prompt([prompt], [[RED] if prompt.images else []])[0]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(0, 2), max_size=4))
def test_shares_add_up_and_each_image_has_its_weight(weights):
    parts = ["a", *(ImageRef(path=str(index), weight=weight) for index, weight in enumerate(weights))]
    terms = weighted_terms(Prompt(parts=tuple(parts)))
    assert math.isclose(sum(term.fraction for term in terms), 1) and all(term.fraction > 0 for term in terms)
    most = max(weights, default=1.0)
    for index, weight in enumerate(weights):
        if most <= 1:
            assert math.isclose(sum(term.fraction for term in terms if index in term.images), weight, abs_tol=1e-9)
        if weight == 0:
            assert not any(index in term.images for term in terms)
    with_words = sum(term.fraction for term in terms if "a" in term.prompt.parts)
    assert math.isclose(with_words, min(1.0, 2 - most), abs_tol=1e-9)


def test_more_subjects_than_a_model_combines_get_a_note(tiny_model, cat, caplog):
    folder = open_model(str(tiny_model))
    prompt = f"a <image:{cat}> and a <image:{cat}> and a <image:{cat}>"
    make_request(folder, prompt)
    assert not caplog.records  # the tiny model has no max_subjects
    shipped = engine.load(device="cpu").folder
    make_request(shipped, prompt)
    assert "3 subjects" in caplog.text and "at most 2" in caplog.text
    caplog.clear()
    make_request(shipped, prompt.replace(f"{cat}>", f"{cat}|weight=0>", 1))
    assert not caplog.records


@pytest.mark.slow
def test_generated_images_come_nearer_to_the_reference_with_the_weight():
    """On the shipped model, by the CLIP that no generator was trained with."""
    from dataclasses import replace

    from kgcli.evaluation.benchmarks.skills_methods import as_prompt

    from kgcli.evaluation.benchmarks.skills import draw_cases
    from kgcli.evaluation.extractors.nano import NanoClip
    from kgcli.inference.pipeline import seeded

    pipeline, cases, clip = engine.load(device="cpu").pipeline, draw_cases("subject", 12, 3), NanoClip()
    references = clip.images([case.images[0] for case in cases])

    def similarity(weight):
        prompts = [
            Prompt(tuple(replace(p, weight=weight) if isinstance(p, ImageRef) else p for p in as_prompt(case).parts))
            for case in cases
        ]
        embeds = pipeline.encode_prompt(prompts, [case.images for case in cases])
        images = pipeline.sample(*embeds, generators=seeded([case.seed for case in cases]), num_inference_steps=12)
        return float((clip.images(images) * references).sum(1).mean())

    found = [similarity(weight) for weight in (0, 0.25, 0.5, 1, 1.5, 2)]
    assert found == sorted(found) and found[-1] - found[0] > 0.3, found

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli.data.sources.world import draw
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks import nano as nano_suites
from kgcli.evaluation.extractors.nano import NanoClip, NanoDino, nano_extractors
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.model.nano_evaluators import EvalClip, EvalVit
from kgcli.model.randomness import StepRandom
from kgcli.recipe import load_recipe
from kgcli.training.loop import train
from kgcli.training.run import Run
from kgcli.world.rendering import render
from kgcli.world.spec import Spec, Subject, place
from kgcli.world.tables import FIRST_NEW_IDENTITY, FIRST_RECOGNISER_IDENTITY


@pytest.fixture(scope="module")
def shipped():
    return nano_extractors()


def photo(subject, scene, seed):
    rng = np.random.default_rng(seed)
    return render(Spec(place([subject], rng), scene, "photo", seed)).image


def of_colour(noun, colour, start):
    found = (Subject(noun, FIRST_NEW_IDENTITY + start + step) for step in range(1000))
    return next(subject for subject in found if subject.look.colour_name == colour)


def trios():
    """A subject, itself in another image, and another instance of its colour in such an image."""
    for number, (name, subject) in enumerate(list(nano_suites.subjects().items())[::3]):
        noun = list(nano_suites.subjects())[(list(nano_suites.subjects()).index(name) + 7) % 30]
        other = of_colour(noun, subject.look.colour_name, 1000 * number)
        yield (
            photo(subject, "beach", number),
            photo(subject, "forest", 50 + number),
            photo(other, "forest", 50 + number),
        )


def test_rows_have_length_one_and_do_not_depend_on_their_batch(shipped):
    images = [image for trio in list(trios())[:2] for image in trio]
    for extractor in (shipped.dino, shipped.clip):
        rows = extractor.images(images)
        assert rows.dtype == np.float32 and rows.shape[0] == len(images)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
        assert np.array_equal(rows[3:4], extractor.images(images[3:4]))
        assert np.array_equal(rows[::-1], extractor.images(images[::-1]))
        assert extractor.images([]).shape == (0, rows.shape[1])


def test_texts_too(shipped):
    texts = ["a cat", "a red dog with blue spots on the beach in Minecraft", "a backpack with the Eiffel Tower"]
    rows = shipped.clip.texts(texts)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(rows[1:2], shipped.clip.texts(texts[1:2]))
    with pytest.raises(UsageError, match=r"tokens, nano-clip takes \d+; shorten 'a cat"):
        shipped.clip.texts(["a cat " * 40])


def test_images_of_other_modes_and_sizes_are_read(shipped):
    image = photo(nano_suites.subjects()["car"], "beach", 1)
    large = image.resize((256, 256), Image.Resampling.NEAREST).convert("RGBA")
    for extractor in (shipped.dino, shipped.clip):
        one, other = extractor.images([image, large])
        assert one @ other > 0.9


# The CLIP sees the scene first: across scenes it tells instances apart on average alone.
@pytest.mark.parametrize(("which", "margin", "share"), [("dino", 0.3, 0.9), ("clip", 0.05, 0.6)])
def test_a_subject_is_more_like_itself_than_another_of_its_colour(shipped, which, margin, share):
    extractor = getattr(shipped, which)
    rows = extractor.images([image for trio in trios() for image in trio])
    asked, same, other = rows[0::3], rows[1::3], rows[2::3]
    near, far = (asked * same).sum(axis=1), (asked * other).sum(axis=1)
    assert near.mean() > far.mean() + margin
    assert (near > far).mean() >= share


def test_a_caption_is_more_like_its_image_than_those_of_others(shipped):
    names = list(nano_suites.subjects())[:10]
    items = [
        next(item for item in _plan().items if item.subject == name and item.prompt == number)
        for number, name in enumerate(names)
    ]
    images = [render(nano_suites.spec_of(item, nano_suites.DREAMBENCH)).image for item in items]
    like = shipped.clip.images(images) @ shipped.clip.texts([item.scored_text for item in items]).T
    assert (like.argmax(axis=1) == np.arange(10)).mean() >= 0.8


def test_facts_name_the_weights_and_are_json(shipped):
    facts = [extractor.facts() for extractor in (shipped.dino, shipped.clip)]
    assert json.loads(json.dumps(facts)) == facts
    assert all(len(one["weights_sha256"]) == 64 for one in facts)
    assert facts[0]["weights_sha256"] != facts[1]["weights_sha256"]


def test_weights_that_are_not_there_are_missed(tmp_path):
    with pytest.raises(MissingError, match="kg base eval_dino nano/eval_dino"):
        NanoDino(tmp_path)
    with pytest.raises(MissingError, match="kg base eval_clip nano/eval_clip"):
        NanoClip(tmp_path)


@pytest.mark.parametrize("kind", ["described", "rescened"])
def test_evaluators_see_instances_of_their_own(kind):
    for index in range(12):
        sample = draw({kind: 1.0}, 5, index, 64)
        assert sample.caption or kind == "rescened"
        if sample.truth is not None:
            assert all(placed.subject.identity >= FIRST_RECOGNISER_IDENTITY for placed in sample.truth.spec.subjects)
        again = draw({kind: 1.0}, 5, index, 64)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(sample.images, again.images, strict=True))


def test_evaluators_share_no_seed_with_another_recipe():
    names = ["align", "instruct", "pretrain", "judge", "clip", "unet", "vae", "eval_clip", "eval_dino"]
    recipes = {name: load_recipe(f"nano/{name}") for name in names}
    for name in ("eval_clip", "eval_dino"):
        others = [recipe for other, recipe in recipes.items() if other != name]
        assert recipes[name].seed not in {recipe.seed for recipe in others}
        assert recipes[name].data.seed not in {recipe.data.seed for recipe in others}


@pytest.mark.parametrize("stage", ["eval_clip", "eval_dino"])
def test_a_run_resumes_to_the_same_weights_and_loads(stage, tmp_path):
    whole = load_recipe(f"smoke/{stage}", [f"output_dir={tmp_path / 'whole'}"])
    train(whole)
    parts = [f"output_dir={tmp_path / 'parts'}"]
    train(load_recipe(f"smoke/{stage}", [*parts, "steps=2", "optim.schedule=constant"]))
    held = load_recipe(f"smoke/{stage}", [*parts, "optim.schedule=constant"])
    train(held)
    load = {"eval_clip": EvalClip.load, "eval_dino": EvalVit.load}[stage]
    one = load(tmp_path / "whole" / "final" / stage).state_dict()
    assert all(torch.isfinite(value).all() for value in one.values())
    once = load_recipe(f"smoke/{stage}", [f"output_dir={tmp_path / 'once'}", "optim.schedule=constant"])
    train(once)
    resumed, unbroken = (load(tmp_path / name / "final" / stage).state_dict() for name in ("parts", "once"))
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def test_the_contrast_of_views_falls_when_features_are_right():
    recipe = load_recipe("smoke/eval_dino")
    run = Run(recipe.model_copy(update={"seed": 0}))
    stage, batch = run.stage, next(run.batches(None, 0))
    optimizer = torch.optim.Adam(stage.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):  # the loss of these few samples reaches its floor, 0.55 of the first, at about the 24th
        loss = stage(batch, StepRandom(1, 0, batch.numbers))["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def _plan():
    return nano_suites.dreambench_plan("0" * 64, "data", DreamBenchOptions(num_images=1), {})

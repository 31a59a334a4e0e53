"""Every model of the construction as a real class at toy size, from a folder to its part of a sample."""

import importlib.util

import numpy as np
import pytest
import tiny_stages
from PIL import Image
from tiny_clipseg import write_clipseg

from kgcli.construction.config import BuildConfig, StageConfig
from kgcli.construction.stage import Draft, Place
from kgcli.construction.table import make_stages
from kgcli.errors import IncompatibleError, UsageError

CAPTION = "a cat and a dog with a hat on the beach"
NOUNS = [("cat", (2, 5)), ("dog", (12, 15))]


def draft(seed=0, **changes):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    return Draft(f"{seed:03d}", "here", image, **{"caption": CAPTION, **changes})


def apply(part, use, drafts, **options):
    """Run one stage, made as the command makes it; the model's folder is an option."""
    cfg = StageConfig(
        use=use,
        **{name: str(value) if "model" in name or "detector" in name else value for name, value in options.items()},
    )
    plain = {
        "filters": (),
        "text_filters": (),
        "captioner": StageConfig(use="given"),
        "extractor": StageConfig(use="rules"),
    }
    plain |= {"segmenter": StageConfig(use="world"), "safety": ()}
    config = BuildConfig(**{**plain, part: (cfg,) if part in ("filters", "safety", "text_filters") else cfg})
    folders = {str(value): str(value) for value in options.values()}
    (stage,) = [stage for name, stage in make_stages(config, Place("cpu", folders)) if name == f"{part}/{use}"]
    stage.apply(drafts)
    return drafts


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def test_blip2_captions_images(models):
    folder = tiny_stages.write_blip2(models / "blip2")
    first, second = apply("captioner", "model", [draft(0, caption=""), draft(1, caption="")], model=folder)
    assert first.caption and first.caption == first.caption.strip()
    assert first.caption == apply("captioner", "model", [draft(0, caption="")], model=folder)[0].caption
    (kept,) = apply("captioner", "model", [draft(0)], model=folder, keep_given=True)
    assert kept.caption == CAPTION
    asked = apply("captioner", "model", [draft(0, caption="")], model=folder, prompt="Question: what? Answer:")
    assert "Question" not in asked[0].caption


@pytest.mark.parametrize("kind", ["mpt", "qwen2"])
def test_a_language_model_lists_entities(models, kind):
    folder = tiny_stages.write_language_model(models / kind, kind)
    (one,) = apply("extractor", "list", [draft()], model=folder)
    (again,) = apply("extractor", "list", [draft()], model=folder)
    assert (one.entities, one.dropped) == (again.entities, again.dropped), "its sampling is seeded"
    assert one.entities or one.dropped in ("no entity in the caption", "the answer goes on")


@pytest.mark.skipif(importlib.util.find_spec("xgrammar") is None, reason="xgrammar is not installed")
def test_a_random_language_model_bound_to_the_caption_answers_in_its_words(models):
    folder = tiny_stages.write_language_model(models / "qwen3")
    from kgcli.construction.extractors import JsonExtractor, JsonExtractorOptions, parse_json_list

    options = JsonExtractorOptions(model=str(folder), max_new_tokens=256, at_most=3)
    extractor = JsonExtractor(options, Place("cpu", {str(folder): str(folder)}))
    found = parse_json_list(extractor._answer(draft()))
    assert found and all(name in CAPTION for name in found)
    (one,) = apply("extractor", "json", [draft()], model=folder, max_new_tokens=256)
    assert all(CAPTION[start:stop] for _, (start, stop) in one.entities)
    (cut,) = apply("extractor", "json", [draft()], model=folder, max_new_tokens=3)
    assert cut.dropped == "the answer is no JSON"


def test_clipseg_cuts_out_entities(models):
    folder = write_clipseg(models / "clipseg", bias=5.0)
    (one,) = apply("segmenter", "clipseg", [draft(entities=NOUNS)], model=folder, size=32)
    assert [cut.crop.size for cut in one.cuts] == [(32, 32)] * 2
    nothing = write_clipseg(models / "nothing", bias=-50.0)
    (one,) = apply("segmenter", "clipseg", [draft(entities=NOUNS)], model=nothing)
    assert one.dropped == "no entity in the image"


def test_grounding_dino_and_sam2_cut_out_entities(models):
    detector, sam = tiny_stages.write_grounding_dino(models / "dino"), tiny_stages.write_sam2(models / "sam2")
    (one,) = apply(
        "segmenter", "grounded-sam", [draft(entities=NOUNS)], detector=detector, model=sam, threshold=0.0, size=32
    )
    assert len(one.cuts) == 2 and (any(one.cuts) or one.dropped)
    (one,) = apply("segmenter", "grounded-sam", [draft(entities=NOUNS)], detector=detector, model=sam, threshold=0.99)
    assert one.dropped == "no entity in the image"


def test_sam3_cuts_out_entities(models):
    folder = tiny_stages.write_sam3(models / "sam3")
    (one,) = apply(
        "segmenter", "sam3", [draft(entities=NOUNS)], model=folder, threshold=0.0, mask_threshold=0.01, size=32
    )
    assert len(one.cuts) == 2 and any(one.cuts) and one.cuts[0].crop.size == (32, 32)
    (one,) = apply("segmenter", "sam3", [draft(entities=NOUNS)], model=folder, threshold=0.99)
    assert one.dropped == "no entity in the image"


def test_the_safety_checker_drops_what_it_flags(models):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_stages.write_safety_checker(models / "checker")
    for threshold, dropped in ((2.0, ""), (-2.0, "explicit image")):
        weights = load_file(folder / "model.safetensors")
        weights["concept_embeds_weights"] = torch.full_like(weights["concept_embeds_weights"], threshold)
        weights["special_care_embeds_weights"] = torch.full_like(weights["special_care_embeds_weights"], 2.0)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert apply("safety", "checker", [draft()], model=folder)[0].dropped == dropped


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_a_classifier_drops_the_labels_it_is_told(models, kind):
    folder = tiny_stages.write_classifier(models / kind, kind)
    assert (
        apply("safety", "classifier", [draft()], model=folder, refuse=["NSFW", "normal"])[0].dropped == "explicit image"
    )
    found = [
        apply("safety", "classifier", [draft()], model=folder, refuse=[label])[0].dropped
        for label in ("nsfw", "normal")
    ]
    assert sorted(found) == ["", "explicit image"]
    with pytest.raises(UsageError, match="no label 'explicit'; it has normal, nsfw"):
        apply("safety", "classifier", [draft()], model=folder, refuse=["explicit"])


def test_another_model_in_its_place_is_one_line(models):
    folder = tiny_stages.write_classifier(models / "other")
    for part, use in (("segmenter", "clipseg"), ("segmenter", "sam3"), ("captioner", "model"), ("extractor", "list")):
        with pytest.raises(IncompatibleError) as caught:
            apply(part, use, [draft(entities=NOUNS)], model=folder)
        assert "\n" not in str(caught.value)

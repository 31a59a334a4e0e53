"""Laws of the two worlds: a model is measured in its own, by what was trained on it, and the first world's protocol
stays what it was."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kgcli.config import SamplingConfig
from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.world import Truth
from kgcli.evaluation.benchmarks import nano as suites
from kgcli.evaluation.benchmarks import nano_data
from kgcli.evaluation.benchmarks.nano_skills import load_judges
from kgcli.evaluation.benchmarks.nano_world import (
    decoder_size,
    find_weights,
    size_of_protocol,
    world_of_method,
)
from kgcli.evaluation.benchmarks.skills import case_of, skills_plan
from kgcli.evaluation.extractors.nano import NanoDino
from kgcli.evaluation.metrics.recognition import portrait
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.model.nano_evaluators import EvalVit
from kgcli.model.nano_recognisers import Recognisers
from kgcli.world.sizes import VIEW_SIZE, shipped_for, view, world_of
from kgcli.world.spec import Subject, stands_out

PLANS_BEFORE = {  # sha256 of what the first world's plans were before there was a second
    "dreambench": "59510be47a7f0b5c",
    "coco": "b1164c27700393cc",
    "skills": "c126e5c25f68abc8",
    "images": "f37f1c3c302398a1",
}


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def diffusers_folder(folder, latents, blocks):
    """The configurations of a decoder, with a tensor each."""
    configs = {"unet": {"sample_size": latents}, "vae": {"block_out_channels": [8] * blocks}}
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file({"w": torch.zeros(1)}, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


# ---------------------------------------------------------------- which world


@pytest.mark.parametrize(("size", "world"), [(64, 64), (128, 128), (32, 64), (512, 64), (None, 64)])
def test_only_models_of_128_px_belong_to_the_second_world(size, world):
    assert world_of(size) == world


def test_a_model_belongs_to_the_world_of_its_images(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for size, world in ((64, 64), (128, 128)):
        config["generation"] |= {"width": size, "height": size}
        (folder / "config.json").write_text(json.dumps(config))
        assert world_of_method(MethodOptions(model=str(folder))) == world
    assert world_of_method(MethodOptions(model=str(tmp_path / "nowhere"))) == 64  # reported by the method


def test_a_decoder_given_alone_tells_the_world(tmp_path):
    decoder = diffusers_folder(tmp_path / "decoder", latents=16, blocks=4)
    assert decoder_size(decoder) == 128
    assert world_of_method(MethodOptions(decoder=str(decoder))) == 128
    assert world_of_method(MethodOptions(decoder=str(diffusers_folder(tmp_path / "small", 16, 3)))) == 64
    with pytest.raises(MissingError, match="unet/config.json"):
        decoder_size(tmp_path)


# ---------------------------------------------------------------- what is measured


def test_the_plans_of_the_first_world_are_what_they_were():
    plans = {
        "dreambench": suites.dreambench_plan("0" * 64, Path("data"), DreamBenchOptions(), {}),
        "coco": suites.coco_plan("0" * 64, Path("data"), 40, 0, {}),
        "skills": skills_plan(Path("x"), 8, 0, {}),
    }
    found = {name: digest(plan.to_json().encode()) for name, plan in plans.items()}
    images = [image.tobytes() for item in plans["skills"].items for image in case_of(item).images]
    assert {**found, "images": digest(b"".join(images))} == PLANS_BEFORE


def test_plans_of_the_second_world_name_its_size():
    for size in (64, 128):
        plans = [
            suites.dreambench_plan("0" * 64, Path("data"), DreamBenchOptions(), {}, size),
            suites.coco_plan("0" * 64, Path("data"), 4, 0, {}, size=size),
            skills_plan(Path("x"), 4, 0, {}, ("subject",), size),
        ]
        assert [plan.protocol.get("size") for plan in plans] == [None if size == 64 else 128] * 3
        assert {size_of_protocol(plan.protocol) for plan in plans} == {size}


@pytest.mark.parametrize("size", [64, 128])
def test_a_subject_has_four_to_six_photos_in_as_many_scenes(size):
    for name in suites.subjects():
        scenes = {spec.scene for spec in suites.photo_specs(name, size)}
        assert 4 <= len(scenes) <= 6 and len(scenes) == len(suites.photo_specs(name, size))


def test_photos_and_captions_of_the_second_world_show_what_stands_out():
    assert all(stands_out(spec, 128) for name in suites.subjects() for spec in suites.photo_specs(name, 128))
    assert all(stands_out(suites.caption_of(index, 128)[1], 128) for index in range(24))


@pytest.mark.parametrize(("world", "recipe"), [(64, "nano/judge"), (128, "nano128/judge")])
def test_recognisers_of_other_classes_are_trained_anew_on_their_world(tmp_path, world, recipe):
    (tmp_path / "config.json").write_text(json.dumps({"heads": {"noun": 3}, "world": world}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(IncompatibleError, match=f"trained on another world; train them: `kg base judge {recipe}`"):
        Recognisers.load(tmp_path, world)


def test_data_are_rendered_at_the_size_of_their_world(tmp_path):
    data = nano_data.coco_data(tmp_path / "coco", 4, 128)
    with Image.open(data.folder / data.photos[""][0]) as image:
        assert image.size == (128, 128)
    assert nano_data.cached_folder("nano-coco", 64) != nano_data.cached_folder("nano-coco", 128)


def test_true_renders_have_the_size_of_what_is_generated():
    item = suites.dreambench_plan("0" * 64, Path("data"), DreamBenchOptions(), {}, 128).items[0]
    for size in (64, 128):
        truth = Truth(MethodOptions(), size)
        (image,) = truth.draw([item], Path(), Path())
        assert image.size == (size, size) and truth.facts().get("size") == (None if size == 64 else 128)
    # What is generated may have any size; the world is the model's.
    assert Truth(MethodOptions(sampling=SamplingConfig(width=128, height=128))).size == 64


def test_portraits_of_either_world_are_seen_at_one_size():
    cat = Subject("cat", 1_000_557)
    seen = [view(portrait(cat, size)) for size in (64, 128)]
    assert {image.size for image in seen} == {(VIEW_SIZE, VIEW_SIZE)}
    assert not np.array_equal(*map(np.asarray, seen))  # two renderers


# ---------------------------------------------------------------- who judges


def save_judges(folder, world):
    Recognisers([8, 16], [8, 16], 8, world).save(folder)
    return folder


def test_judges_of_the_other_world_are_refused(tmp_path):
    mine, other = save_judges(tmp_path / "mine", 128), save_judges(tmp_path / "other", 64)
    assert load_judges(128, mine).config["world"] == 128
    with pytest.raises(IncompatibleError, match=r"world of 64 px.*that of 128 px.*kg base judge nano128/judge"):
        load_judges(128, other)
    with pytest.raises(IncompatibleError, match=r"world of 128 px.*kg base judge nano/judge"):
        load_judges(64, mine)


@pytest.mark.skipif(shipped_for("judges", 128).is_dir(), reason="they ship")
def test_judges_that_do_not_ship_have_to_be_given():
    with pytest.raises(MissingError, match=r"kg base judge nano128/judge.*give --judges FOLDER"):
        load_judges(128)


def test_judges_that_do_not_say_are_of_the_first_world(tmp_path):
    folder = save_judges(tmp_path, 64)
    config = json.loads((folder / "config.json").read_text())
    del config["world"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_judges(64, folder).config["world"] == 64
    with pytest.raises(IncompatibleError):
        load_judges(128, folder)


def test_extractors_of_the_other_world_are_refused_and_name_theirs(tmp_path):
    vit = {"img_size": 64, "patch_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 1}
    EvalVit(vit, 8, 128).save(tmp_path)
    facts = NanoDino(tmp_path, 128).facts()
    assert facts["world"] == 128 and facts["sizes"] == {"vit": vit, "width": 8}
    with pytest.raises(IncompatibleError, match="kg base eval_dino nano/eval_dino"):
        NanoDino(tmp_path, 64)


def test_weights_of_a_folder_are_checked_all_at_once(tmp_path):
    assert find_weights(64).judges.is_dir()
    with pytest.raises(MissingError, match="eval_clip nano128/eval_clip"):
        find_weights(128, save_judges(tmp_path / "judges", 128).parent)

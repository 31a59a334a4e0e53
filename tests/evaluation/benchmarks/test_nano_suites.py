import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from kgcli.data.images import open_image
from kgcli.data.sources.world import SAMPLERS, draw
from kgcli.data.sources.world_sample import BASE_NOUNS
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.world import Other
from kgcli.evaluation.benchmarks import nano as nano_suites
from kgcli.evaluation.benchmarks import nano_data
from kgcli.evaluation.benchmarks.skills import skills_plan
from kgcli.evaluation.plan import DreamBenchOptions, Plan
from kgcli.evaluation.run import nano_score
from kgcli.evaluation.scores import Scores, figures_of, image_score
from kgcli.model.nano_recognisers import Recognisers
from kgcli.weights.shipped import RECOGNISERS
from kgcli.world.rendering import render, stands_out
from kgcli.world.spec import is_held_out
from kgcli.world.tables import FIRST_NEW_IDENTITY, FIRST_RECOGNISER_IDENTITY, SIZE

METHOD = {"name": "test"}
# The start of the SHA-256 of the plans and of each kind's first samples, without images.
PLANS = {
    "dreambench": "bfdbfd2fb98ed7e4",
    "coco": "056455d5756267bf",
    "skills": "70973e23d3592e51",
}
DRAWS = {
    "captioned": "1507d663bdd80535",
    "contrast": "75faaa146d860b3e",
    "text": "f9dbba24c62e6b0d",
    "pair": "3eac3f9b2a3031a8",
    "interleaved": "4ec399760ac4aabb",
    "compositional": "8d3ec749b9c03bd4",
    "edit": "550c6217b852ea0c",
    "caption": "4c177869f6db29f7",
    "judged": "d99eb14efef811b6",
    "described": "ce542579530183c6",
    "rescened": "fdc6fb5d1c8e9261",
    "comic": "6fa42f3e2bc7f690",
    "one": "848ed33fdc1cbbd4",
    "two": "5128c174443d2a81",
    "three": "79a3e4fc1da90adc",
}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dreambench(**options):
    return nano_suites.dreambench_plan("0" * 64, Path("data"), DreamBenchOptions(**options), METHOD)


def coco(num=24, seed=0):
    return nano_suites.coco_plan("0" * 64, Path("data"), num, seed, METHOD)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return nano_data.dreambench_data(tmp_path_factory.mktemp("nano") / "dreambench")


def test_the_suite_has_the_shape_of_dreambench():
    plan = dreambench()
    assert len(plan.items) == 30 * 25 * 4 == plan.protocol["num_items"]
    assert len({item.path for item in plan.items}) == len({item.seed for item in plan.items}) == len(plan.items)
    categories = {item.subject: item.category for item in plan.items}
    assert sorted(categories.values()).count("object") == 21 and sorted(categories.values()).count("live") == 9
    assert {item.kind for item in plan.items} == {"context", "accessory", "attribute"}
    assert {len(unit) for unit in plan.units()} == {4 * 8, 4}  # eight prompts of a subject at a time, and the last one


def test_a_plan_is_a_function_of_the_seed_and_the_seed_is_of_the_noise_alone():
    for make in (dreambench, coco):
        plan, again, other = make(seed=3), make(seed=3), make(seed=4)
        assert plan == again == dataclasses.replace(Plan.from_json(plan.to_json()), data="data")
        assert plan.protocol == other.protocol and plan.method != other.method
        without = [[dataclasses.replace(item, seed=0) for item in one.items] for one in (plan, other)]
        assert without[0] == without[1]
        assert all(a.seed != b.seed for a, b in zip(plan.items, other.items, strict=True))


def test_plans_are_those_of_this_version_of_the_suites():
    """A change of one makes scores incomparable: raise VERSION with it."""
    plans = {"dreambench": dreambench(), "coco": coco(40), "skills": skills_plan(Path("x"), 8, 0, {})}
    assert {name: digest(plan.to_json()) for name, plan in plans.items()} == PLANS


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_world_draws_what_models_were_trained_on(kind):
    """Words and specs alone: pixels differ from machine to machine."""
    samples = [draw({kind: 1.0}, 0, index, SIZE) for index in (0, 1, 40, 80)]  # contrast has groups of 32
    assert digest(repr([(one.caption, one.fragments, one.truth) for one in samples])) == DRAWS[kind]


def test_the_seed_of_an_image_does_not_depend_on_what_else_is_asked():
    some = dreambench(num_images=1, subjects=(list(nano_suites.subjects())[3],))
    seeds = {item.path: item.seed for item in dreambench().items}
    assert all(seeds[item.path] == item.seed for item in some.items)


def test_no_instance_is_one_that_anything_is_trained_on():
    shown = list(nano_suites.subjects().values())
    shown += [placed.subject for i in range(60) for placed in nano_suites.caption_of(i)[1].subjects]
    assert all(FIRST_NEW_IDENTITY <= subject.identity < FIRST_RECOGNISER_IDENTITY for subject in shown)
    assert all(subject.noun in BASE_NOUNS for subject in shown)


def test_texts_drop_or_keep_the_noun_and_the_scored_text_has_it():
    dropped, kept = dreambench(num_images=1), dreambench(num_images=1, class_noun=True)
    for one, other in zip(dropped.items, kept.items, strict=True):
        noun = one.class_noun
        assert noun not in one.input_text.split() and one.input_text.startswith("<image> ")
        assert f" {noun} <image> " in other.input_text and noun in one.scored_text.split()
        assert one.input_text.count("<image>") == len(one.inputs) == 1
        assert one.scored_text == other.scored_text == other.input_text.replace("<image> ", "")
    assert dropped.protocol == kept.protocol and dropped.method != kept.method
    texts = [item.scored_text for item in dropped.items if item.subject == dropped.items[0].subject]
    assert len(set(texts)) == 25


def test_captions_include_combinations_that_no_stage_saw():
    specs = [nano_suites.caption_of(index)[1] for index in range(24)]
    assert [is_held_out(spec) for spec in specs] == [index in (11, 23) for index in range(24)]
    assert all(stands_out(spec) for spec in specs)


def test_what_cannot_be_asked_is_said():
    with pytest.raises(UsageError, match="unknown subject unicorn"):
        dreambench(subjects=("unicorn",))
    with pytest.raises(UsageError, match="at least 1"):
        dreambench(num_images=0)
    with pytest.raises(UsageError, match="supports only independent noise"):
        dreambench(noise="official")
    with pytest.raises(UsageError, match="5000 captions are requested, but nano-coco has 4000"):
        coco(num=5000)


def test_photos_are_whole_and_show_the_subject_in_different_scenes(data):
    assert set(data.photos) == set(nano_suites.subjects())
    for name, photos in data.photos.items():
        assert 4 <= len(photos) <= 6 and data.input_of(name) in photos
        assert len({spec.scene for spec in nano_suites.photo_specs(name)}) == len(photos)
        assert all(stands_out(spec) for spec in nano_suites.photo_specs(name))
    path = next(iter(data.photos.values()))[1]
    photo, mask = open_image(data.folder / path), open_image(data.masks / path)
    assert photo.size == mask.size == (SIZE, SIZE) and 0.15 < (np.asarray(mask)[..., 0] > 127).mean() < 0.8
    assert all((data.folder / item.inputs[0]).is_file() for item in dreambench(num_images=1).items)


def test_photos_are_made_once_and_the_same_anywhere(data, tmp_path):
    stamps = {path: path.stat().st_mtime_ns for path in data.folder.rglob("*.png")}
    assert nano_data.dreambench_data(data.folder) == data
    assert stamps == {path: path.stat().st_mtime_ns for path in data.folder.rglob("*.png")}
    elsewhere = nano_data.dreambench_data(tmp_path / "again")
    assert elsewhere.sha256 == data.sha256 and elsewhere.photos == data.photos


def test_a_folder_of_other_or_damaged_data_is_refused(tmp_path):
    folder = nano_data.coco_data(tmp_path / "coco", num=6).folder
    with pytest.raises(UsageError, match="num 6, not 7"):
        nano_data.coco_data(folder, num=7)
    with pytest.raises(UsageError, match="suite nano-coco"):
        nano_data.dreambench_data(folder)
    (folder / "real/000/000003.png").write_bytes(b"")
    with pytest.raises(MissingError, match="1 of 6 files are missing or changed"):
        nano_data.coco_data(folder, num=6)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no nano-coco data"):
        nano_data.coco_data(tmp_path / "other", num=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "other"]


def test_the_recognisers_know_true_images_from_those_of_others(data, tmp_path):
    recognisers, suite = Recognisers.load(RECOGNISERS), nano_suites.DREAMBENCH
    names = list(nano_suites.subjects())[16:26]
    items = [item for item in dreambench(num_images=1, subjects=tuple(names)).items if item.prompt in (1, 12)]
    true = [render(nano_suites.spec_of(item, suite)).image for item in items]
    others = [render(Other(MethodOptions()).spec(item)).image for item in items]
    found = {}
    rows = zip(("true", "other"), nano_score.recognise(items, suite, [true, others], recognisers), strict=True)
    for row, values in rows:
        scored = [image_score(item, one) for item, one in zip(items, values, strict=True)]
        figures = figures_of(scored, [one.name for one in nano_score.RECOGNISED], row)
        found[row] = {one.measure: one.value for one in figures if one.group == "all"}
        assert {one.row for one in figures} == {row} and "category:live" in {one.group for one in figures}
    assert found["true"]["judge_picked"] > 0.7 > 0.3 > found["other"]["judge_picked"]
    assert found["true"]["judge_noun"] > 0.9 > 0.1 > found["other"]["judge_noun"]
    assert min(found[row]["judge_scene"] for row in found) > 0.9


def test_the_recognisers_score_captions_of_one_and_two_subjects():
    recognisers, items = Recognisers.load(RECOGNISERS), coco(num=24).items
    true = [render(nano_suites.spec_of(item, nano_suites.COCO)).image for item in items]
    (values,) = nano_score.recognise(items, nano_suites.COCO, [true], recognisers)
    assert np.mean([one["judge_noun"] for one in values]) > 0.7
    assert not any("judge_picked" in one for one in values)
    assert {len(one) for one in values} == {3, 4}  # of two subjects no accessory is asked


def test_the_recognisers_are_added_to_scores(data, tmp_path):
    recognisers = Recognisers.load(RECOGNISERS)
    name = next(iter(nano_suites.subjects()))
    options = DreamBenchOptions(num_images=1, subjects=(name,))
    plan = nano_suites.dreambench_plan(data.sha256, data.folder, options, METHOD)
    for item in plan.items:
        (tmp_path / item.path).parent.mkdir(parents=True, exist_ok=True)
        render(nano_suites.spec_of(item, plan.suite)).image.save(tmp_path / item.path)
    bare = [image_score(item) for item in plan.items]
    scores = Scores(
        suite=plan.suite, protocol=plan.protocol, method=METHOD, versions={}, data=plan.data, measures=(), figures=(),
        pictures=tuple(bare),
    )  # fmt: skip
    extended = nano_score.add_recognition(scores, plan.items, tmp_path, "a note")
    assert extended.protocol["judges_sha256"] == recognisers.sha256()
    assert extended.notes == ("a note",)
    assert extended.find("judge_noun").value >= 0.8 and extended.find("judge_picked", "copy-input").value == 1.0
    assert extended.find("judge_scene", "copy-input").value < 0.3  # a copy stays where it was
    assert all("judge_picked" in one.values for one in extended.pictures)
    assert set(extended.find("judge_style").__dict__) >= {"low", "high"}

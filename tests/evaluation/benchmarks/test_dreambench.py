import dataclasses

import pytest
from benchmark_data import write_dreambench

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.dreambench import (
    input_text,
    kind_of,
    multi_plan,
    noise_seed,
    single_plan,
    subject_groups,
)
from kgcli.evaluation.benchmarks.dreambench_data import SUBJECTS, category_of, open_dreambench, prompt_text
from kgcli.evaluation.plan import DreamBenchOptions, Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dreambench(tmp_path_factory.mktemp("dreambench") / "dataset")


@pytest.fixture(scope="module")
def data(folder):
    return open_dreambench(folder)


@pytest.fixture(scope="module")
def plan(data):
    return single_plan(data, DreamBenchOptions(), {"name": "none"})


def test_the_benchmark_has_30_subjects_9_of_them_live():
    assert len(SUBJECTS) == 30 and sum(category_of(name) == "live" for name in SUBJECTS) == 9


def test_a_plan_asks_for_3000_images(plan):
    assert len(plan.items) == 3000 == len({item.path for item in plan.items}) == len({item.seed for item in plan.items})
    assert plan.protocol["num_items"] == 3000 and plan.protocol["num_subjects"] == 30
    assert {len(unit) for unit in plan.units()} == {4}
    kinds = [item.kind for item in plan.items]
    assert (kinds.count("attribute"), kinds.count("accessory"), kinds.count("context")) == (600, 360, 2040)


def test_a_plan_is_its_file(plan):
    assert Plan.from_json(plan.to_json()) == dataclasses.replace(plan, data="")


def test_inputs_and_texts_are_the_published_ones(plan):
    first = plan.items[0]
    assert first.inputs == ("backpack/02.jpg",) and first.path == "images/backpack/00_0.png"
    assert (first.input_text, first.scored_text) == ("<image> in the jungle", "a backpack in the jungle")
    assert input_text("backpack", 0, class_noun=True) == "backpack <image> in the jungle"
    assert [input_text("can", prompt, False) for prompt in (20, 24)] == ["<image>, red", "<image>, cube shaped"]
    assert prompt_text("stuffed animal", "object", 12) == "a stuffed animal with the Eiffel Tower in the background"
    assert prompt_text("dog", "live", 19) == "a dog in a purple wizard outfit"
    assert (kind_of("dog", 10), kind_of("can", 10), kind_of("dog", 9)) == ("accessory", "context", "context")


def test_a_seed_depends_on_nothing_but_its_own_image(data, plan):
    some = single_plan(data, DreamBenchOptions(subjects=("dog",), num_images=2), {})
    seeds = {(item.subject, item.prompt, item.image): item.seed for item in plan.items}
    assert all(seeds[item.subject, item.prompt, item.image] == item.seed for item in some.items)
    assert some.protocol != plan.protocol and some.protocol["subjects"] == ["dog"]
    other = single_plan(data, DreamBenchOptions(seed=1), {})
    assert not {item.seed for item in other.items} & set(seeds.values())
    assert other.protocol == plan.protocol  # another seed is the same question


def test_official_noise_has_20_latents(data):
    options = DreamBenchOptions(noise="official")
    plan = single_plan(data, options, {})
    assert len({item.seed for item in plan.items}) == 20
    assert noise_seed(options, "dog", 3, 2) == noise_seed(options, "can", 8, 2) != noise_seed(options, "dog", 3, 1)


def test_groups_are_of_different_classes():
    for num in (2, 3):
        groups = subject_groups(num)
        assert len({frozenset(group) for group in groups}) == 30
        assert all(len({SUBJECTS[name][0] for name in group}) == num for group in groups)


def test_the_second_suite_asks_for_two_and_three_subjects(data):
    plan = multi_plan(data, DreamBenchOptions(), {})
    assert len(plan.items) == 2400 == len({item.path for item in plan.items})
    assert all(item.input_text.count("<image>") == len(item.inputs) for item in plan.items)
    three = next(item for item in plan.items if item.kind == "three")
    assert three.input_text == "<image>, <image> and <image> in the jungle"
    assert three.scored_text.startswith("a backpack, a ") and len(three.inputs) == 3
    noun = multi_plan(data, DreamBenchOptions(class_noun=True), {}).items[0]
    assert noun.input_text.startswith("backpack <image> and ")


def test_a_checkout_or_its_dataset_will_do(folder, data):
    assert open_dreambench(folder.parent) == data


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: [path.unlink() for path in (folder / "dog").iterdir()], "1 of 30 subjects have no photos (dog"),
        (lambda folder: (folder / "cat" / "04.jpg").unlink(), "input photos are missing (cat/04.jpg)"),
        (lambda folder: (folder / "cat" / "04.jpg").write_bytes(b"version https://git-lfs"), "damaged (cat/04.jpg)"),
        (
            lambda folder: (folder / "cat" / "07.jpg").write_bytes((folder / "cat" / "04.jpg").read_bytes()),
            "159 photos",
        ),
        (
            lambda folder: (folder / "prompts_and_classes.txt").write_text("dog,cat"),
            "differs from the benchmark in class nouns or prompts",
        ),
    ],
)
def test_what_is_wrong_with_the_data_is_said_in_one_message(tmp_path, spoil, words):
    folder = write_dreambench(tmp_path / "dataset")
    spoil(folder)
    with pytest.raises(MissingError) as caught:
        open_dreambench(folder)
    assert words in str(caught.value) and "git clone https://github.com/google/dreambooth" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise": "pink"}, "--noise"),
        ({"num_images": 0}, "--num-images"),
        ({"subjects": ("cow",)}, "unknown subject cow"),
    ],
)
def test_wrong_choices_are_refused(data, fields, words):
    with pytest.raises(UsageError, match=words):
        single_plan(data, DreamBenchOptions(**fields), {})

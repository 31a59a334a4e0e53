import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kgcli import engine
from kgcli.data.images import open_image
from kgcli.data.sources.world_sample import BASE_NOUNS
from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.copy_input import CopyInput
from kgcli.evaluation.baselines.kosmosg import as_prompt
from kgcli.evaluation.baselines.world import Other, Truth, Twin
from kgcli.evaluation.benchmarks import nano_skills as nano
from kgcli.evaluation.benchmarks.skills import (
    BASE_TASKS,
    EDIT_KINDS,
    SKILLS,
    TASKS,
    case_of,
    draw_cases,
    skills_plan,
    write_inputs,
)
from kgcli.evaluation.metrics.intervals import bootstrap, estimate, wilson
from kgcli.evaluation.metrics.recognition import Prediction, distractor_spec, portrait, twin_spec
from kgcli.evaluation.report.grid import write_cases
from kgcli.evaluation.report.skills import SKILLS as LAYOUT
from kgcli.evaluation.report.skills import Report, summarise
from kgcli.evaluation.scores import image_score
from kgcli.model.nano_recognisers import HEADS, IGNORED, Recognisers, around, label_row, labels
from kgcli.weights.shipped import RECOGNISERS
from kgcli.world import text
from kgcli.world.rendering import render, stands_out
from kgcli.world.spec import is_held_out
from kgcli.world.tables import BASE_ONLY_NOUNS, FIRST_NEW_IDENTITY, FIRST_RECOGNISER_IDENTITY, SIZE
from kgcli.world.view import view

NUM = 6  # cases of a task of scale 1


class OracleRecogniser:
    """Recognisers that return the true contents of the images of some cases, and nothing for others."""

    def __init__(self, cases):
        self.known = {}
        for case in cases:
            other = distractor_spec(case.spec, np.random.default_rng(case.seed), BASE_NOUNS)
            for spec in filter(None, (case.spec, other, twin_spec(case.spec), case.before)):
                self._learn(render(spec).image, spec)
            for subject in {subject for gallery in case.galleries.values() for subject in gallery}:
                self.known[view(portrait(subject)).tobytes()] = (None, _vector(subject))

    def classify(self, images):
        rows = [self.known.get(image.tobytes(), ({}, None))[0] or {} for image in images]
        return {head: np.stack([_one_hot(head, row.get(head)) for row in rows]) for head in HEADS}

    def embed(self, images):
        return np.stack([self.known.get(image.tobytes(), (None, np.zeros(64)))[1] for image in images])

    def _learn(self, image, spec):
        num = len(spec.subjects)
        for index, placed in enumerate(spec.subjects):
            self.known[view(around(image, index, num)).tobytes()] = (labels(spec, index), _vector(placed.subject))
        self.known.setdefault(view(image).tobytes(), (labels(spec), np.zeros(64)))


def _vector(subject):
    values = np.random.default_rng([subject.identity, len(subject.recoloured or "")]).normal(size=64)
    return values / np.linalg.norm(values)


def _one_hot(head, choice):
    """All on the right choice; on the last one where nothing is known."""
    row = np.zeros(len(HEADS[head]))
    row[HEADS[head].index(choice) if choice else -1] = 1.0
    return row


@pytest.fixture(scope="module")
def cases():
    return {task: draw_cases(task, NUM, 1) for task in TASKS}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    made = skills_plan(tmp_path_factory.mktemp("skills"), NUM, 1, {}, tuple(TASKS))
    write_inputs(made)
    return made


@pytest.fixture(scope="module")
def rows(cases, plan):
    options = MethodOptions()
    columns = {"model": (Truth(options), tuple(TASKS)), "other": (Other(options), tuple(TASKS))}
    with_images = tuple(task for task in TASKS if task not in BASE_TASKS)
    columns |= {"copy": (CopyInput(options), with_images), "twin": (Twin(options), with_images)}
    recognisers = OracleRecogniser([case for of_task in cases.values() for case in of_task])
    return nano.measure(columns, plan, recognisers, say=lambda line: None)


def truth(cases):
    return [render(case.spec).image for case in cases]


def scores_of(cases, seen):
    return [TASKS[case.task].score(case, one) for case, one in zip(cases, seen, strict=True)]


@pytest.fixture(scope="module")
def report(rows):
    facts = {"protocol": nano.PROTOCOL, "seed": 1, "num": NUM, "model": {"name": "perfect", "sha256": "0" * 64}}
    return Report(facts=facts, rows=rows)


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [(0, 10, 0.0, 0.27754), (10, 10, 0.72246, 1.0), (5, 10, 0.23659, 0.76341), (81, 263, 0.25530, 0.36622)],
)
def test_wilson_gives_published_values(successes, num, low, high):
    assert wilson(successes, num) == pytest.approx((low, high), abs=1e-4)


def test_wilson_holds_its_rate_to_the_last_bit():
    for num in range(1, 200):
        for successes in (0, num):
            low, high = wilson(successes, num)
            assert 0.0 <= low <= successes / num <= high <= 1.0


def test_the_bootstrap_is_near_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(0).uniform(size=400).tolist()
    low, high = bootstrap(values)
    half = 1.96 * np.std(values) / 20
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.005)
    assert bootstrap(values) == (low, high)


def test_proportions_and_other_means_get_their_own_interval():
    assert estimate([1.0, 0.0, 1.0]).method == "wilson"
    assert estimate([0.3, 0.9]).method == "bootstrap"


# ---------------------------------------------------------------- cases


def test_cases_are_a_function_of_task_seed_and_index(cases):
    again = draw_cases("pair", NUM, 1)
    for one, other in zip(cases["pair"], again, strict=True):
        assert (one.spec, one.seed, one.words, one.galleries) == (other.spec, other.seed, other.words, other.galleries)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    assert draw_cases("pair", NUM, 2)[0].spec != again[0].spec


def test_more_cases_begin_with_the_same_ones(cases):
    more = draw_cases("subject", NUM + 2, 1)
    assert [case.spec for case in more[:NUM]] == [case.spec for case in cases["subject"]]


def test_all_instances_are_ones_that_no_stage_and_no_recogniser_has_seen(cases):
    asked = [placed.subject for of_task in cases.values() for case in of_task for placed in case.spec.subjects]
    offered = [
        s for of_task in cases.values() for case in of_task for gallery in case.galleries.values() for s in gallery
    ]
    assert all(FIRST_NEW_IDENTITY <= subject.identity < FIRST_RECOGNISER_IDENTITY for subject in asked + offered)


def test_half_of_the_candidates_share_the_colour_word(cases):
    for case in cases["subject"]:
        right, *wrong = case.galleries["picked"]
        same = sum(subject.look.colour_name == right.look.colour_name for subject in wrong)
        assert right == case.spec.subjects[0].subject and len(wrong) == 19 and same >= 10
        assert {subject.noun for subject in case.galleries["picked_of_noun"]} == {right.noun}


def test_after_a_change_of_colour_all_candidates_have_the_new_one(cases):
    (case,) = [case for case in draw_cases("edit", 4, seed=1)[:4] if case.kind == "colour"]
    assert len({subject.look.colour_name for subject in case.galleries["picked"]}) == 1


def test_the_words_of_a_prompt_with_an_unnamed_subject_do_not_name_it(cases):
    for case in cases["subject"] + cases["base_only"] + cases["styled"] + cases["unseen"]:
        noun = case.spec.subjects[0].subject.noun
        assert noun not in case.words.split() and "<image>" in case.words


def test_tasks_ask_what_they_say(cases):
    assert all(is_held_out(case.spec) for case in cases["held_out"])
    assert all(case.spec.subjects[0].subject.noun in BASE_ONLY_NOUNS for case in cases["base_only"])
    assert all(case.spec.style != "photo" for case in cases["styled"])
    assert {case.kind for case in cases["edit"]} == set(EDIT_KINDS)
    assert all(len(case.images) == 2 for case in cases["pair"])


def test_a_prompt_reads_back_as_it_is_typed(cases):
    case = cases["edit"][0]
    prompt = as_prompt(f"<image>{case.parts[1]}")
    assert prompt.fragments == [None, case.parts[1]]
    assert type(prompt).parse(prompt.format()) == prompt


def test_items_say_all_that_a_method_needs(cases, plan):
    for item in plan.items:
        case = case_of(item)
        assert (item.seed, item.kind, item.category, item.scored_text) == (case.seed, case.kind, case.task, case.words)
        assert len(item.inputs) == len(case.images) == item.input_text.count("<image>")
        shown = [open_image(Path(plan.data) / name) for name in item.inputs]
        assert [image.tobytes() for image in shown] == [image.tobytes() for image in case.images]
    assert {task: [case_of(one).words for one in plan.items if one.category == task] for task in TASKS} == {
        task: [case.words for case in of_task] for task, of_task in cases.items()
    }
    again = type(plan).from_json(plan.to_json())
    assert again == dataclasses.replace(plan, data="") and max(len(unit) for unit in again.units()) <= 16


def test_images_have_the_size_of_the_world_and_cases_survive_their_items(cases, plan):
    assert {image.size for of_task in cases.values() for case in of_task for image in case.images} == {(SIZE, SIZE)}
    assert Truth(MethodOptions()).draw(plan.items[:1], Path(), Path())[0].size == (SIZE, SIZE)
    assert [case_of(item).spec for item in plan.items] == [case.spec for one in cases.values() for case in one]


def test_subjects_stand_out_from_the_scene_of_every_prompt(cases):
    assert all(stands_out(case.spec) for of_task in cases.values() for case in of_task)


def test_a_base_is_asked_for_what_text_alone_can_say(cases):
    assert not any(case.images or case.galleries for task in BASE_TASKS for case in cases[task])
    assert {len(case.spec.subjects) for case in cases["text_pair"]} == {2}
    assert set(SKILLS) | set(BASE_TASKS) == set(TASKS) and "text_pair" not in SKILLS


def words_of(spec):
    """The words for a spec, shades excepted: colours of twins differ within their words."""
    return [text.describe(placed.subject, colours=True) for placed in spec.subjects], spec.scene, spec.style


@pytest.mark.parametrize("task", ["subject", "pair", "edit"])
def test_a_twin_is_another_instance_that_the_same_words_describe(cases, plan, task):
    items = [item for item in plan.items if item.category == task]
    twins = [Twin(MethodOptions()).spec(item) for item in items]
    for case, twin in zip(cases[task], twins, strict=True):
        assert words_of(twin) == words_of(case.spec)
        for one, given in zip(twin.subjects, case.spec.subjects, strict=True):
            identity = one.subject.identity
            assert identity != given.subject.identity and identity >= FIRST_NEW_IDENTITY
            assert one.subject.look.colour != given.subject.look.colour
            # Place, accessory and edits are those of the case.
            subject = dataclasses.replace(one.subject, identity=given.subject.identity)
            assert dataclasses.replace(one, subject=subject) == given
    assert twins == [Twin(MethodOptions()).spec(item) for item in items]


# ---------------------------------------------------------------- scores


def test_right_images_score_one_and_those_of_others_never_have_the_subject(report):
    for row in report.rows:
        if row.column == "model":
            assert row.estimate.value == 1.0, row
        of_identity = row.measure in ("picked", "picked_of_noun", "kept", "done", "pair")
        if row.column == "other" and row.kind == "all" and of_identity:  # a kind of edit has two cases
            assert row.estimate.value <= 0.25, row  # an instance outside the gallery: chance level


def test_other_instances_in_the_right_place_keep_scene_style_and_change(report):
    assert report.find("subject", "scene", "other").value == 1.0
    assert report.find("edit", "change", "other").value == 1.0
    assert report.find("text", "noun", "other").value == 0.0


def test_a_twin_has_all_that_words_tell_and_is_another_instance(report):
    assert report.find("edit", "change", "twin").value == 1.0
    assert report.find("subject", "scene", "twin").value == 1.0
    assert report.find("subject", "noun", "twin").value == 1.0
    assert report.find("subject", "picked_of_noun", "twin").value < 1.0
    assert " twin" in str(report).splitlines()[0]
    assert {row.task for row in report.rows if row.column == "twin"} == set(SKILLS) - {"text"}


def test_the_report_has_a_place_for_every_method_that_is_measured():
    columns = nano.columns_of(engine.load(device="cpu"))
    assert list(columns) == [name for name in LAYOUT.columns if name != "before"]


def test_a_copied_input_is_no_edit(report):
    assert report.find("edit", "kept", "copy", kind="scene").value == 1.0
    assert report.find("edit", "done", "copy").value == 0.0


def test_swapped_sides_count_as_both_shown_but_not_in_order(cases):
    case = cases["pair"][0]
    heads = {head: np.zeros(len(choices)) for head, choices in HEADS.items()}
    score = lambda picked: TASKS["pair"].score(  # noqa: E731
        case, Prediction(case.spec, labels(case.spec), heads, HEADS, ("", ""), {"pair": picked})
    )
    scores = score([1, 0])
    assert (scores["pair"], scores["pair_in_order"]) == (1.0, 0.0)
    twice = score([0, 0])
    assert twice["pair"] == 0.0
    colours_swapped = score([2, 3])
    assert colours_swapped["pair"] == 0.0


def test_every_task_has_scores_and_edits_are_summed_up_by_kind_too(report):
    assert {row.task for row in report.rows} == set(TASKS)
    assert report.find("edit", "done", kind="colour").num * len(EDIT_KINDS) == report.find("edit", "done").num


def test_scores_do_not_depend_on_who_else_is_scored(cases):
    chosen = cases["subject"]
    recognisers = OracleRecogniser(chosen)
    together = scores_of(chosen, nano.recognition_of(recognisers, chosen)(truth(chosen)))
    alone = [scores_of([case], nano.recognition_of(recognisers, [case])(truth([case])))[0] for case in chosen]
    assert together == alone


# ---------------------------------------------------------------- the recognisers


def test_recognisers_come_back_as_they_were_saved(tmp_path):
    torch.manual_seed(0)
    recognisers = Recognisers([8, 16], [8, 16, 16], 8)
    recognisers.load_state_dict({name: value.half().float() for name, value in recognisers.state_dict().items()})
    recognisers.save(tmp_path)
    again = Recognisers.load(tmp_path)
    assert again.sha256() == recognisers.sha256()
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    assert np.allclose(again.embed([image]), recognisers.eval().embed([image]), atol=1e-5)
    assert {name: values.shape for name, values in again.classify([image]).items()} == {
        name: (1, len(choices)) for name, choices in HEADS.items()
    }


def test_missing_and_foreign_recognisers_are_named(tmp_path):
    with pytest.raises(MissingError, match="kg base judge"):
        Recognisers.load(tmp_path)
    recognisers = Recognisers([8, 16], [8, 16], 8)
    recognisers.config["heads"] = {"noun": 3}
    recognisers.save(tmp_path)
    with pytest.raises(IncompatibleError, match="another world"):
        Recognisers.load(tmp_path)


def test_heads_that_do_not_apply_are_not_asked(cases):
    one, two = label_row(cases["subject"][0].spec), label_row(cases["pair"][0].spec)
    asked = lambda row: {head for head, label in zip(HEADS, row, strict=True) if label != IGNORED}  # noqa: E731
    assert asked(one) == set(HEADS)
    assert asked(two) == set(HEADS) - {"accessory"}


def test_the_shipped_recognisers_know_true_images_from_others(tmp_path):
    items, data = skills_plan(tmp_path, 24, 3, {}, ("subject",)).items, tmp_path
    recognisers = Recognisers.load(RECOGNISERS)
    cases = [case_of(item) for item in items]
    recognise = nano.recognition_of(recognisers, cases)

    def report(method):
        values = scores_of(cases, recognise(method.draw(items, data, data)))
        scored = [image_score(*pair) for pair in zip(items, values, strict=True)]
        return Report(facts={}, rows=summarise("subject", "model", scored))

    true, other = report(Truth(MethodOptions())), report(Other(MethodOptions()))
    assert true.find("subject", "noun").value > 0.9
    assert true.find("subject", "picked").value > 0.8 and other.find("subject", "picked").value < 0.3


# ---------------------------------------------------------------- the report


def test_the_table_shows_intervals_and_what_the_model_is_compared_with(report):
    table = str(report)
    assert "text only (6)" in table and "edit, colour (2)" in table and nano.PROTOCOL in table
    assert "100.0 [ 61.0, 100.0]" in table  # Wilson's interval of 6 in 6
    assert max(map(len, table.splitlines()[:-3])) <= 120


def test_the_json_holds_all_figures_and_versions(report):
    read = json.loads(report.to_json())
    assert read["protocol"] == nano.PROTOCOL and "torch" in read["versions"]
    assert len(read["rows"]) == len(report.rows)
    assert set(read["rows"][0]) == {"task", "kind", "measure", "painter", "value", "low", "high", "num", "method"}


def test_the_grid_has_a_cell_for_each_answer(cases, tmp_path):
    answers = [(case, render(case.spec).image) for case in cases["pair"] + cases["edit"]]
    write_cases(answers * 2, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > grid.height > 100


@pytest.mark.parametrize("command", ["nano", "adapters"])
def test_a_grid_of_no_image_format_is_refused_at_once(kg, without_engine, command):
    ran = kg("eval", command, "--grid", "grid.foo")
    assert ran.code == 2 and "must end in one of .png" in ran.err

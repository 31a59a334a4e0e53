"""Comparing scored runs: only of one protocol, paired on the same images."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from scipy import stats
from scored_run import MEASURES, PROTOCOL, SUBJECTS, make_caption_run, make_subject_run, rewrite

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.report.compare import compare, open_runs
from kgcli.evaluation.scores import Figure


@pytest.fixture
def two(tmp_path):
    """Runs `a` and `b`, scores alone."""
    a = make_subject_run(tmp_path / "a", seed=1, num_images=2, pictures=False)
    b = make_subject_run(tmp_path / "b", seed=2, num_images=2, pictures=False, shift=0.1)
    return tmp_path, a, b


def table(scores, measure):
    """(subjects, prompts, images) in the order of the run."""
    return np.array([one.values[measure] for one in scores.pictures]).reshape(len(SUBJECTS), -1, 2)


def test_differences_are_those_of_a_paired_t_test(two):
    folder, a, b = two
    comparison = compare(open_runs([folder / "a", folder / "b"]))
    for measure in MEASURES:
        means = [table(one, measure.name).mean(axis=(1, 2)) for one in (b, a)]
        test = stats.ttest_rel(*means)
        low, high = test.confidence_interval(0.95)
        found = comparison.find(measure.name, "b")
        assert (found.value, found.low, found.high) == pytest.approx((np.mean(means[0] - means[1]), low, high))
        assert found.bootstrap_low < found.value < found.bootstrap_high
        assert (found.num_clusters, found.num_pictures) == (len(SUBJECTS), 64)
        assert found.clear == (min(found.low, found.bootstrap_low) > 0)


def test_pairing_takes_out_what_makes_subjects_hard(two):
    folder, a, b = two
    found = compare(open_runs([folder / "a", folder / "b"])).find("dino_input", "b")
    x, y = (table(one, "dino_input").mean(axis=(1, 2)) for one in (a, b))
    unpaired = stats.ttest_ind(y, x).confidence_interval(0.95)
    assert found.high - found.low < unpaired.high - unpaired.low


def test_images_are_matched_and_not_counted_off(two):
    folder, a, b = two
    rewrite(folder / "b", b, pictures=tuple(reversed(b.pictures)))
    shuffled = compare(open_runs([folder / "a", folder / "b"])).differences
    rewrite(folder / "b", b)
    assert shuffled == compare(open_runs([folder / "a", folder / "b"])).differences


def test_runs_of_different_images_are_refused(two):
    folder, _, b = two
    rewrite(folder / "b", b, pictures=b.pictures[:5])
    with pytest.raises(UsageError, match=r"different images \(64 and 5, 5 in both\)"):
        open_runs([folder / "a", folder / "b"])


def test_a_subject_in_several_images_of_one_prompt_is_paired_image_by_image(two):
    """As in the suite of several subjects: without the path, one of the pairs would stand for all of them."""
    folder, a, b = two
    for name, scores, shift in (("a", a, 0.0), ("b", b, 0.06)):
        one = scores.pictures[0]
        images = tuple(
            dataclasses.replace(one, path=f"images/{place}.{'png' if name == 'a' else 'jpg'}", values={"clip_t": value})
            for place, value in enumerate(np.random.default_rng(0).permutation(9) / 10 + shift)
        )
        rewrite(folder / name, scores, pictures=images)
    found = compare(open_runs([folder / "a", folder / "b"])).find("clip_t", "b")
    assert found.value == pytest.approx(0.06) and found.num_pictures == 9


def test_only_images_that_have_the_measure_in_both_runs_count(two):
    folder, a, b = two
    images = tuple(
        one if one.subject != "dog" and one.image == 0 else dataclasses.replace(one, values={}) for one in b.pictures
    )
    rewrite(folder / "b", b, pictures=images)
    found = compare(open_runs([folder / "a", folder / "b"])).find("clip_t", "b")
    difference = (table(b, "clip_t") - table(a, "clip_t"))[1:, :, 0].mean()
    assert SUBJECTS[0] == "dog" and found.value == pytest.approx(difference)
    assert (found.num_clusters, found.num_pictures) == (len(SUBJECTS) - 1, 28)


def test_a_run_does_not_differ_from_itself(tmp_path):
    scores = make_subject_run(tmp_path / "a", pictures=False)
    (tmp_path / "b").mkdir()
    scores.write(tmp_path / "b")
    for one in compare(open_runs([tmp_path / "a", tmp_path / "b"])).differences:
        assert (one.value, one.low, one.high, one.clear) == (0.0, 0.0, 0.0, False)


def test_one_subject_has_a_difference_without_an_interval(tmp_path):
    for name in "ab":
        make_subject_run(tmp_path / name, subjects=("dog",), pictures=False, seed=ord(name))
    found = compare(open_runs([tmp_path / "a", tmp_path / "b"])).find("dino_input", "b")
    assert found.num_clusters == 1 and found.low is None and found.bootstrap_low is None and not found.clear


def test_a_distance_of_distributions_has_no_paired_difference(tmp_path):
    for seed, name in enumerate("ab"):
        make_caption_run(tmp_path / name, seed=seed, num=12, size=4)
    comparison = compare(open_runs([tmp_path / "a", tmp_path / "b"]))
    assert {one.measure for one in comparison.differences} == {"clip_t"}
    assert comparison.find("clip_t", "b").num_clusters == 12  # captions, where there are no subjects
    assert "FID (lower is better)" in str(comparison) and "11.9900 [11.5000, 12.6000]" in str(comparison)
    bare = Figure(measure="fid", value=4.0, bootstrap_low=3.0, bootstrap_high=6.0)
    assert bare.bounds == (3.0, 6.0) and dataclasses.replace(bare, low=2.0, high=7.0).bounds == (2.0, 7.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "dreambench"}, "suite nano-dreambench against dreambench"),
        ({"protocol": {**PROTOCOL, "num_steps": 50}}, "num_steps 100 against 50"),
        ({"protocol": {**PROTOCOL, "extractors": {"dino": {"sha256": "ef" * 32}}}}, "extractors.dino.sha256 abab"),
        ({"protocol": {"num_steps": 100}}, "guidance_scale 7.5 against absent; noise independent against absent"),
    ],
)
def test_other_protocols_are_refused_in_one_line(two, kg, changes, words):
    folder, a, b = two
    rewrite(folder / "b", b, **changes)
    for command in (["compare"], ["report", "-o", "page.html"]):
        done = kg("eval", *command, "a", "b")
        assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
        assert "a and b have different protocols" in done.err and words in done.err
    assert not (folder / "page.html").exists()


def test_many_differing_keys_are_counted(two):
    folder, a, b = two
    rewrite(folder / "b", b, protocol={str(number): number for number in range(9)})
    with pytest.raises(UsageError, match=r"0 absent against 0; 1 absent against 1; 2 absent against 2 and 10 more"):
        open_runs([folder / "a", folder / "b"])


def test_what_is_no_scored_run_is_named(two, kg):
    folder, a, b = two
    (folder / "empty").mkdir()
    (folder / "b" / "scores.json").unlink()
    for name, words in (
        ("gone", "gone does not exist"),
        ("empty", "empty is not a run folder"),
        ("b", "b is not scored yet; score it with kg eval dreambench"),
    ):
        done = kg("eval", "compare", "a", name)
        assert done.code == 3 and words in done.err and done.err.count("\n") == 1
    (folder / "a" / "scores.json").write_text("{")
    with pytest.raises(MissingError, match="damaged"):
        open_runs([folder / "a"])


def test_a_run_is_compared_with_another(two, kg):
    assert "give two or more runs" in kg("eval", "compare", "a").err
    done = kg("eval", "compare", "a", "a/scores.json")
    assert done.code == 2 and "given twice" in done.err


def test_runs_of_one_name_are_told_apart(two, kg):
    folder, a, b = two
    for name, scores in (("x", a), ("y", b)):
        (folder / name / "run").mkdir(parents=True)
        scores.write(folder / name / "run")
    assert "x/run" in kg("eval", "compare", "x/run", "y/run").out


def test_the_table_and_the_json_say_the_same(two, kg, without_engine):
    folder, a, b = two
    lines = kg("eval", "compare", "a", "b").lines
    found = json.loads(kg("eval", "compare", "a", "b", "--json").out)
    assert [run["name"] for run in found["runs"]] == ["a", "b"] and found["protocol"] == PROTOCOL
    assert len(found["figures"]) == 2 * len(MEASURES) and len(found["differences"]) == len(MEASURES)
    (difference,) = (one for one in found["differences"] if one["measure"] == "clip_t")
    (line,) = (one for one in lines if one.startswith("CLIP-T") and " b " in one)
    assert f"{difference['value']:+.4f}" in line and f"[{difference['low']:.4f}, {difference['high']:.4f}]" in line
    assert difference["clear"] is True and " * " in line


def test_a_measure_of_one_run_alone_is_left_out(two):
    folder, a, b = two
    bare = tuple(dataclasses.replace(one, values={"clip_t": one.values["clip_t"]}) for one in b.pictures)
    rewrite(folder / "b", b, pictures=bare)
    comparison = compare(open_runs([folder / "a", folder / "b"]))
    assert [one.measure for one in comparison.differences] == ["clip_t"]


@pytest.mark.parametrize("spoilt", ["null", '"many"', "NaN"])
def test_scores_are_numbers(two, spoilt):
    folder = two[0]
    text = (folder / "b" / "scores.json").read_text()
    (folder / "b" / "scores.json").write_text(re.sub(r'"value": [^,\n]+', f'"value": {spoilt}', text, count=1))
    with pytest.raises(MissingError, match=r"scores.json is damaged"):
        open_runs([folder / "a", folder / "b"])

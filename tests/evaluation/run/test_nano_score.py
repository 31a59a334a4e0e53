from dataclasses import replace

import pytest

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.copy_input import CopyInput
from kgcli.evaluation.baselines.world import Other, Truth
from kgcli.evaluation.benchmarks import nano as nano_suites
from kgcli.evaluation.benchmarks.dreambench import single_plan
from kgcli.evaluation.benchmarks.dreambench_data import DreamBenchData
from kgcli.evaluation.benchmarks.nano_data import coco_data, dreambench_data
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import finish, generate_run
from kgcli.evaluation.run.nano_score import score_nano
from kgcli.evaluation.scores import Scores

pytestmark = pytest.mark.slow

SUBJECTS = tuple(list(nano_suites.subjects())[::10])
NUM = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("nano-scoring")


@pytest.fixture(scope="module")
def scored(root):
    """Runs of a suite by who drew them, scored."""
    data = dreambench_data(root / "photos")
    real = coco_data(root / "real", num=2 * NUM)
    scores = {}
    for kind in (Truth, Other, CopyInput):
        method = kind(MethodOptions())
        options = DreamBenchOptions(num_images=1, subjects=SUBJECTS)
        plans = {"dreambench": nano_suites.dreambench_plan(data.sha256, data.folder, options, method.facts())}
        if kind is not CopyInput:
            plans["coco"] = nano_suites.coco_plan(real.sha256, real.folder, NUM, 0, method.facts(), num_real=2 * NUM)
        for name, plan in plans.items():
            run = RunFolder.start(root / f"{name}-{method.name}", plan)
            generate_run(run, method)
            finish(run)
            scores[name, method.name] = score_nano(run, root / "cache")
    return scores


def test_the_right_images_are_the_ceiling_and_others_the_floor(scored):
    right, wrong = scored["dreambench", "truth"], scored["dreambench", "other"]
    for measure in ("dino_input", "dino_all", "clip_i_all", "clip_t", "judge_picked", "judge_noun"):
        assert right.find(measure).value > wrong.find(measure).value + 0.05, measure
    assert right.find("clip_t").value > right.find("clip_t", "copy-input").value
    assert right.find("judge_scene").value > 0.9 > 0.3 > right.find("judge_scene", "copy-input").value


def test_a_copy_of_the_input_scores_one_against_it_and_does_not_obey(scored):
    copy = scored["dreambench", "copy-input"]
    assert copy.find("dino_input").value == pytest.approx(1.0, abs=1e-6)
    assert copy.find("copied").value == 1.0
    for measure in ("dino_input", "clip_i_others", "clip_t", "judge_scene"):
        assert copy.find(measure).value == pytest.approx(copy.find(measure, "copy-input").value, abs=1e-9)
    assert copy.find("clip_t").value < scored["dreambench", "truth"].find("clip_t").value


def test_captions_score_best_with_their_own_images(scored):
    right, wrong = scored["coco", "truth"], scored["coco", "other"]
    assert right.find("clip_t").value > wrong.find("clip_t").value + 0.1
    assert right.find("fid_nano-clip").value < wrong.find("fid_nano-clip").value
    assert right.find("judge_noun").value > 0.7
    assert not any(figure.group.startswith("subject:") for figure in right.figures if "judge" in figure.measure)


def test_scores_say_what_they_are_and_are_the_same_again(scored, root):
    for (name, who), scores in scored.items():
        folder = root / f"{name}-{who}"
        assert scores.notes[0].startswith("A nano suite") and Scores.read(folder) == replace(scores, data="")
        assert {"judges_sha256", "scoring", "data_sha256", "version"} <= set(scores.protocol)
    folder = root / "dreambench-truth"
    before = {path.name: path.read_bytes() for path in folder.glob("scores.*")}
    score_nano(RunFolder.open(folder), root / "cache")
    assert before == {path.name: path.read_bytes() for path in folder.glob("scores.*")} and len(before) == 3


def test_other_photos_than_those_of_the_run_are_refused(scored, root):
    run = RunFolder.open(root / "dreambench-truth")
    run.plan.protocol["data_sha256"] = "0" * 64
    with pytest.raises(MissingError, match="differ from those of the run"):
        score_nano(run, root / "cache")


def test_the_world_renders_no_other_suite(tmp_path):
    plan = single_plan(DreamBenchData(tmp_path, {}, "0" * 64), DreamBenchOptions(num_images=1, subjects=("vase",)), {})
    with pytest.raises(UsageError, match="supports the nano suites only"):
        Truth(MethodOptions()).prepare("vase", plan.items, tmp_path, tmp_path)

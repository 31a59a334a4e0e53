import random
import re
from pathlib import Path

import pytest
from benchmark_data import write_annotations, write_dreambench
from benchmark_process import DEADLINE, KG, kill_at, start_python, write_random_weights

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.table import make
from kgcli.evaluation.benchmarks.coco import choose_captions, coco_plan
from kgcli.evaluation.benchmarks.dreambench import multi_plan, single_plan
from kgcli.evaluation.benchmarks.dreambench_data import open_dreambench
from kgcli.evaluation.extractors.weight_files import Weights
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import finish, generate_run
from kgcli.evaluation.run.scoring import PRESET_WEIGHTS, Resources, Scoring, check_texts, find_resources
from kgcli.evaluation.run.suites import each_subject
from kgcli.evaluation.scores import Scores

SCORED = ("scores.json", "manifest.jsonl")
# Scores a run as `score_run` does, by extractors that need no weights and take their time.
SCORE = """
import sys, time
from pathlib import Path
import numpy as np
from kgcli.evaluation.benchmarks.dreambench_data import input_photo, open_dreambench
from kgcli.evaluation.extractors.base import Extractors
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.score import score_subjects
from kgcli.evaluation.metrics.subjects import SubjectPhotos

class Colours:
    name = "colours"

    def facts(self):
        return {"extractor": self.name}

    def images(self, images):
        time.sleep(0.1)
        rows = np.stack([np.asarray(image.resize((4, 4)), np.float32).ravel() + 1 for image in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def texts(self, texts):
        rows = np.stack([np.random.default_rng(len(text)).normal(size=48).astype(np.float32) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

run = RunFolder.open(Path(sys.argv[1]))
photos = open_dreambench(Path(run.plan.data)).photos
references = {name: SubjectPhotos(paths, input_photo(name)) for name, paths in photos.items()}
score_subjects(run.path, run.plan, references, Extractors(dino=Colours(), clip=Colours()))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dreambench(tmp_path_factory.mktemp("dreambench") / "dataset")


def generated(path, data):
    """A run of copies, all of them there."""
    plan = single_plan(open_dreambench(data), DreamBenchOptions(num_images=1), {"name": "copy-input"})
    run = RunFolder.start(path, plan)
    generate_run(run, make("copy-input", MethodOptions()))
    finish(run)
    return run.path


@pytest.mark.slow
def test_scoring_killed_at_five_points_ends_as_one_that_was_not(tmp_path, data):
    whole, killed = generated(tmp_path / "whole", data), generated(tmp_path / "killed", data)
    assert start_python(SCORE, whole).wait(DEADLINE) == 0
    num = sum(1 for _ in (whole / "features").glob("[!.]*"))
    points = sorted(random.Random(0).choices(range(1, num), k=5))
    kills = [kill_at(start_python(SCORE, killed), killed / "features", point) for point in points]
    assert sum(kills) >= 4 and not (killed / "scores.json").exists()
    assert start_python(SCORE, killed).wait(DEADLINE) == 0
    for name in SCORED:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_the_true_networks_score_what_the_command_drew(tmp_path, data):
    """Of the true architectures, with weights that know nothing."""
    weights = write_random_weights(tmp_path / "weights")
    asked = ["eval", "dreambench", "--data", data, "--method", "copy-input", "--subjects", "dog,can", "-n", 1]
    asked += ["--weights", weights, "--offline", "--device", "cpu"]
    assert start_python(KG, *asked, "-o", tmp_path / "run").wait(600) == 0
    assert start_python(KG, *asked, "-o", tmp_path / "two", "--only", "generate").wait(600) == 0
    score = ["eval", "dreambench", "-o", tmp_path / "two", "--only", "score", *asked[-5:]]
    assert start_python(KG, *score).wait(600) == 0
    assert (tmp_path / "run" / "scores.json").read_bytes() == (tmp_path / "two" / "scores.json").read_bytes()

    scores = Scores.read(tmp_path / "run")
    assert scores.find("dino_input").value == pytest.approx(1.0, abs=1e-5)
    assert scores.find("copied").value == 1.0 and scores.find("dino_input").num_pictures == 50


def test_weights_are_looked_for_before_anything_is_generated(kg, tmp_path, data, monkeypatch):
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "none"))
    ran = kg("eval", "dreambench", "--data", data, "--method", "copy-input", "-o", "run", "--offline")
    assert ran.code == 3 and "dino_deitsmall16_pretrain.pth" in ran.err and "ViT-B-32.pt" in ran.err
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_only_when_it_is_complete(kg, tmp_path, data):
    ran = kg("eval", "dreambench", "--only", "score", "-o", "run")
    assert ran.code == 3 and "holds no run" in ran.err


def test_images_of_several_subjects_are_scored_for_each(data):
    plan = multi_plan(open_dreambench(data), DreamBenchOptions(num_images=1), {})
    each = each_subject(plan)
    assert len(each.items) == 300 * 2 + 300 * 3 and len({item.subject for item in each.items}) == 30
    assert all(item.inputs[0].startswith(f"{item.subject}/") for item in each.items)
    single = single_plan(open_dreambench(data), DreamBenchOptions(num_images=1), {})
    assert each_subject(single) == single


def test_the_real_set_of_coco_is_whole_or_named(tmp_path):
    write_annotations(tmp_path, 9)
    with pytest.raises(MissingError, match="0 images instead of 40504"):
        find_resources("coco", tmp_path, Scoring())
    with pytest.raises(UsageError, match="--real"):
        find_resources("coco", tmp_path, Scoring(real=tmp_path))


def test_presets_are_those_of_the_networks():
    from kgcli.evaluation.extractors.inception import PRESETS

    assert {name: one.weights for name, one in PRESETS.items()} == PRESET_WEIGHTS
    with pytest.raises(UsageError, match="--preset is best"):
        Scoring(presets=("best",))


def test_masks_are_a_folder():
    with pytest.raises(UsageError, match="--masks"):
        Scoring(masks=Path("nowhere"))


@pytest.mark.parametrize(
    ("suite", "flags", "words"),
    [
        ("coco", ("--preset", "clean"), "--preset does not apply to nano-coco"),
        ("coco", ("--real", "nowhere"), "--real does not apply"),
        ("coco", ("--captions", "one"), "--captions does not apply to nano-coco"),
        ("coco", ("--num", 1), "a distribution needs two"),
        ("coco", ("--also", "cmmd"), "--also is cmmd"),
        ("dreambench", ("--name", "mine"), "--name names the system behind --images"),
    ],
)
def test_what_a_suite_has_no_use_for_is_refused(kg, tmp_path, suite, flags, words):
    ran = kg("eval", suite, "--suite", "nano", "--data", "data", "-o", "run", *flags)
    assert ran.code == 2 and words in ran.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("suite", ["coco", "dreambench"])
def test_weights_that_are_missing_are_said_before_any_image_is_rendered(kg, tmp_path, suite):
    ran = kg("eval", suite, "--suite", "nano", "--data", "data", "-o", "run", "--weights", "nowhere")
    assert ran.code == 3 and "nowhere/eval_clip" in ran.err and "kg base eval_clip nano/eval_clip" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_preset_is_named_once():
    with pytest.raises(UsageError, match="--preset names clean more than once"):
        Scoring(presets=("clean", "clean"))


def test_texts_too_long_for_clip_are_found_before_anything_is_generated(tmp_path):
    (tmp_path / "long.txt").write_text("a cat\n" + "very " * 90 + "old cat\n")
    plan = coco_plan(choose_captions(str(tmp_path / "long.txt"), None), 0, {}, None)
    ready = Resources(Scoring(also=("clip-score",)), {"clip": Weights(tmp_path, "")})
    with pytest.raises(UsageError, match="tokens, CLIP takes 77"):
        check_texts(plan, ready)
    check_texts(plan, Resources(Scoring(), {}))  # nothing reads it


def test_scoring_takes_the_data_from_where_it_is_said_to_be(kg, tmp_path):
    asked = ("eval", "dreambench", "--suite", "nano", "--subjects", "cow", "-n", 1, "--method", "copy-input")
    assert kg(*asked, "--data", "data", "-o", "run", "--only", "generate").code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    ran = kg("eval", "dreambench", "--suite", "nano", "--only", "score", "-o", "run", "--data", "moved")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "data").exists()
    assert "moved" not in (tmp_path / "run/scores.json").read_text("utf-8")


def test_all_faults_are_listed_together_weights_last(kg, tmp_path, monkeypatch):
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "none"))
    flags = ["--noise", "loud", "--only", "look", "--masks", "nowhere", "--set", "steps"]
    ran = kg("eval", "dreambench", "--data", "gone", "--method", "none", "-o", "run", "--offline", *flags)
    lines = ran.err.splitlines()
    assert ran.code == 2 and len(lines) == 7 and all(line.startswith("error: ") for line in lines)
    expected = ("--set steps", "--noise is loud", "--masks is nowhere", "--only is look", "no method none", "gone")
    for line, words in zip(lines, expected, strict=False):
        assert words in line
    assert "weights are missing" in lines[-1] and not (tmp_path / "run").exists()


def test_scores_are_printed_as_a_table(kg, tmp_path):
    asked = ("eval", "dreambench", "--suite", "nano", "--subjects", "cow,pig,owl", "-n", 1, "--method", "copy-input")
    ran = kg(*asked, "-o", "run")
    assert ran.lines == ["run"] and "copy-input, 75 images" in ran.err and "DINO" not in ran.out
    assert re.search(r"self-supervised ViT to the input \(higher\) +1\.000", ran.err) and "oracle" in ran.err
    assert "CLIP-T" not in kg(*asked, "-o", "run", "-q").err
    assert "CLIP-T" not in kg(*asked, "-o", "other", "--only", "draw").err  # the step's name in earlier versions

"""The protocol at its true counts: 30 subjects, 25 prompts, 4 images each, and networks of the true architectures.

Only what no test can have is small: the model, its images and photos, and what the networks know.
"""

import json
import re

import pytest
from benchmark_data import write_dreambench
from benchmark_process import KG, kill_at, start_python, write_random_weights

from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import Scores

HOUR = 3600  # seconds
NUM_SUBJECTS, NUM_PROMPTS, NUM_IMAGES = 30, 25, 4
NUM = NUM_SUBJECTS * NUM_PROMPTS * NUM_IMAGES


@pytest.mark.slow
def test_the_whole_protocol_killed_twice(kg, tmp_path, tiny_model):
    data, run = write_dreambench(tmp_path / "dataset"), tmp_path / "run"
    weights = write_random_weights(tmp_path / "weights")
    asked = ["eval", "dreambench", "--data", data, "--model", tiny_model, "-o", run, "--steps", 2, "--size", 16]
    asked += ["--weights", weights, "--offline", "--device", "cpu"]
    assert kill_at(start_python(KG, *asked), run / "images", 9, HOUR)  # of 30 folders
    assert kill_at(start_python(KG, *asked), run / "features", 40, HOUR)
    assert not (run / "scores.json").exists()
    assert start_python(KG, *asked).wait(HOUR) == 0
    check_manifest(run)
    check_scores(Scores.read(run))
    assert kg("eval", "report", run, "-o", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert len(re.findall("<img", page)) > NUM_SUBJECTS and len(page) < 100e6


def check_manifest(run):
    entries = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    items = RunFolder.open(run).plan.items
    assert len(entries) == len(items) == NUM and len({entry["path"] for entry in entries}) == NUM
    assert len({item.seed for item in items}) == NUM  # each image has noise of its own
    assert len({item.subject for item in items}) == NUM_SUBJECTS
    assert all((run / entry["path"]).is_file() for entry in entries)


def check_scores(scores):
    for name in ("dino_input", "dino_all", "dino_others", "clip_i_input", "clip_i_all", "clip_i_others", "clip_t"):
        figure = scores.find(name)
        assert figure.num_pictures == NUM and figure.num_subjects == NUM_SUBJECTS
        assert figure.low < figure.value < figure.high
    groups = {figure.group for figure in scores.figures}
    assert len({group for group in groups if group.startswith("subject")}) == NUM_SUBJECTS
    assert scores.find("dino_input", row="copy-input").value == pytest.approx(1.0, abs=1e-5)
    assert scores.find("dino_others", row="oracle").value < 1.0

"""Every crash point of generate, convert, align and eval: killed there and run again, the same files are there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kgcli.weights.shipped import DEFAULT_MODEL

SCRIPT = Path(__file__).with_name("crash_points.py")
ALIGN = [f"init_from.model={DEFAULT_MODEL}", f"init_from.text={DEFAULT_MODEL / 'decoder'}", "output_dir=run"]
ALIGN += ["parts.aligner={kind: full, num_layers: 1}", "data.batch_size=2"]
ALIGN += ["steps=2", "save_every=1", "sample_every=2", "keep_checkpoints=1"]
EVAL = ["--suite", "nano", "--subjects", "cow", "-n", "1", "--method", "copy-input", "--data", "data", "-o", "run"]


def enumerate_crashes(start, tmp_path, *command):
    """Returns what differed, by the number of the operation."""
    (tmp_path / "work").mkdir()
    asked = [sys.executable, str(SCRIPT), str(start), str(tmp_path / "work"), *map(str, command)]
    done = subprocess.run(asked, capture_output=True, text=True)
    logs = "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in (tmp_path / "work").glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    return json.loads(done.stdout.splitlines()[-1]), logs


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_generate(tiny_model, tmp_path, suffix):
    start = tmp_path / "start"
    start.mkdir()
    command = ("generate", "a cat", "--model", tiny_model, "-n", 2, "-s", 1, "-o", f"out-{{seed}}.{suffix}")
    found, logs = enumerate_crashes(start, tmp_path, *command, "--skip-existing")
    assert found["operations"] >= 6 and found["different"] == {}, (found, logs)


@pytest.mark.slow
def test_convert(kg, tiny_model, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    assert kg("convert", tiny_model, start / "published.pt", "--to", "published").code == 0
    shutil.copytree(tiny_model, start / "model")  # an older one, which is replaced
    tokenizer = tiny_model / "tokenizer" / "sentencepiece.model"
    command = ("convert", "published.pt", "model", "--spm", tokenizer, "--decoder", tiny_model / "decoder")
    found, logs = enumerate_crashes(start, tmp_path, *command, "--overwrite")
    assert found["operations"] >= 10 and found["different"] == {}, (found, logs)


@pytest.mark.slow
def test_align(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    found, logs = enumerate_crashes(start, tmp_path, "align", "smoke/align", *ALIGN)
    assert found["operations"] >= 20 and found["different"] == {}, (found, logs)


@pytest.mark.slow
def test_eval(kg, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    made = kg("eval", "dreambench", *EVAL[:-4], "--data", start / "data", "-o", tmp_path / "made", "--only", "generate")
    assert made.code == 0, made.err
    found, logs = enumerate_crashes(start, tmp_path, "eval", "dreambench", *EVAL)
    assert found["operations"] >= 20 and found["different"] == {}, (found, logs)

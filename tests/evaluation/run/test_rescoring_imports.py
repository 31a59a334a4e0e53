"""Imports of rescoring a nano run, held as a list: cached scores need neither networks nor torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.world import Truth
from kgcli.evaluation.benchmarks import nano as nano_suites
from kgcli.evaluation.benchmarks.nano_data import dreambench_data
from kgcli.evaluation.plan import SCORES, DreamBenchOptions
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import finish, generate_run
from kgcli.evaluation.run.nano_score import score_nano

ROOT = Path(__file__).parents[3]
OURS = {
    *(f"cli{name}" for name in ("", ".app", ".bench", ".evaluate", ".failure", ".logs", ".options", ".report")),
    *(
        "config",
        "data",
        "data.colour",
        "data.images",
        "errors",
        "files",
        "reading",
        "runtime",
        "version",
    ),
    *("evaluation", "evaluation.plan", "evaluation.scores", "evaluation.report", "evaluation.report.tables"),
    *(f"evaluation.baselines{name}" for name in ("", ".base", ".table")),
    *(f"evaluation.benchmarks{name}" for name in ("", ".nano", ".nano_data")),
    *(f"evaluation.extractors{name}" for name in ("", ".base", ".cache", ".nano")),
    *("evaluation.metrics", "evaluation.metrics.intervals", "evaluation.metrics.recognition"),
    *(f"evaluation.metrics.{name}" for name in ("distribution", "frechet", "kernels", "manifolds", "subjects")),
    *(f"evaluation.run{name}" for name in ("", ".benchmark", ".folder", ".generate", ".nano_score", ".real_set")),
    *("evaluation.run.score", "evaluation.run.scoring"),
    *(f"world{name}" for name in ("", ".bank", ".looks", ".oklab", ".rendering", ".scenes", ".spec", ".styles")),
    *("world.subjects", "world.tables", "world.text", "world.view"),
}
HEAVY = {"torch", "torchvision", "transformers", "diffusers", "timm", "accelerate", "peft", "safetensors", "open_clip"}
HEAVY |= {"scipy.stats", "jinja2", "huggingface_hub", "torchmetrics", "cleanfid", "cv2"}
PROBE = """
import sys
from kgcli.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules)
"""


@pytest.mark.slow
def test_scoring_again_loads_no_network(tmp_path):
    data = dreambench_data(tmp_path / "photos")
    method = Truth(MethodOptions())
    options = DreamBenchOptions(num_images=1, subjects=(next(iter(nano_suites.subjects())),))
    run = RunFolder.start(
        tmp_path / "run", nano_suites.dreambench_plan(data.sha256, data.folder, options, method.facts())
    )
    generate_run(run, method)
    finish(run)
    score_nano(run, tmp_path / "cache")
    before = (run.path / SCORES).read_bytes()
    (run.path / SCORES).unlink()
    command = [
        "eval",
        "dreambench",
        "--suite",
        "nano",
        "--only",
        "score",
        "-o",
        str(run.path),
        "--data",
        str(data.folder),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROBE, *command], capture_output=True, text=True, check=True, env=env)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & HEAVY
    assert {name.removeprefix("kgcli.") for name in modules if name.startswith("kgcli.")} == OURS
    assert (run.path / SCORES).read_bytes() == before


@pytest.mark.parametrize("module", ["run.nano_score", "run.benchmark", "report.compare", "benchmarks.nano_skills"])
def test_what_runs_before_networks_loads_none(module):
    probe = f"import sys, kgcli.evaluation.{module}; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=env)
    assert not set(done.stdout.split()) & HEAVY

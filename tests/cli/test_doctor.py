"""`kg doctor` and `kg env`: quick, without tracebacks on odd machines, and nothing secret in a bug report."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from kgcli.cli.doctor import checks, machine, packages
from kgcli.cli.doctor.checks import BAD, DOUBTFUL, GOOD, examine

TORCH = {
    "torch": "2.15.0", "cuda": None, "hip": None, "names": [], "memory": [], "mps": False, "threads": 2,
    "bfloat16": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Torch's answer, instead of the seconds that another process takes to import it."""
    answer = dict(TORCH)
    monkeypatch.setattr(machine, "probe_torch", lambda: answer)
    return answer


def states(**options):
    found = {}
    for one in examine(**options):
        found.setdefault(one.subject, []).append((one.state, one.words))
    return found


def test_a_sound_installation(kg):
    done = kg("doctor")
    assert done.code == 0 and done.err == "" and not re.search("^fault", done.out, re.MULTILINE)
    for subject in ("kgcli", "python", "torch", "device", "dtype", "memory", "cache", "hub", "model", "installed"):
        assert re.search(rf"^(ok|note) +{subject} ", done.out, re.MULTILINE), subject
    assert [json.loads(line)["subject"] for line in kg("doctor", "--json").lines][0] == "kgcli"


def test_torch_is_really_asked(monkeypatch):
    monkeypatch.undo()
    found = machine.probe_torch()
    assert found["torch"] and machine.device_of(found) in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("import no_such_module", "No module named"),
        ("import os; os.abort()", "ended with code"),
        ("print('no json')", "ended with code"),
        ("import time; time.sleep(9)", "TimeoutExpired"),
    ],
)
def test_a_broken_torch_is_a_line(monkeypatch, kg, probe, words):
    monkeypatch.undo()
    monkeypatch.setattr(machine, "PROBE", probe)
    found = machine.probe_torch(timeout=1)
    assert words in found["error"]
    monkeypatch.setattr(machine, "probe_torch", lambda: found)
    done = kg("doctor")
    assert done.code == 4 and words in done.out and "Traceback" not in done.out + done.err
    assert kg("env").code == 0


def test_the_hub_is_asked_only_on_demand(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "ask_hub", lambda: asked.append(1) or "no route")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "not asked" in states()["hub"][0][1] and not asked
    assert states(online=True)["hub"][0][0] == DOUBTFUL and asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in states(online=True)["hub"][0][1] and len(asked) == 1


def test_a_hub_that_does_not_answer_is_a_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1" in machine.ask_hub()
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert machine.ask_hub()


def test_a_gpu_that_torch_cannot_use(monkeypatch, torch):
    monkeypatch.setattr(machine, "has_nvidia", lambda: True)
    assert any("CPU build" in words for _, words in states()["device"])
    torch.update(cuda="13.2")
    assert any("driver" in words for _, words in states()["device"])
    torch.update(names=["H100"], memory=[[70 * 10**9, 80 * 10**9]], bfloat16=True)
    assert [words for _, words in states()["device"]] == ["cuda: H100 (70.0 GB of 80.0 GB free)"]
    assert "bfloat16" in states()["dtype"][0][1]


def test_odd_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "memory", lambda: (None, None))
    monkeypatch.setattr(machine, "free_disk", lambda folder: None)
    monkeypatch.setattr(machine, "can_write", lambda folder: False)
    found = states()
    assert {found[name][0][0] for name in ("memory", "cache", "here")} == {DOUBTFUL}


def test_a_damaged_model_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr("kgcli.weights.folder.DEFAULT_MODEL", tmp_path / "gone")
    assert states()["model"][0][0] == BAD


def test_memory_and_disk_are_those_of_the_system(tmp_path):
    total, free = machine.memory()
    assert total and free and free <= total
    assert machine.free_disk(tmp_path / "not" / "there") > 0
    assert machine.can_write(tmp_path / "not" / "there") and machine.cores() >= 1 and machine.processor()


class Fake(Distribution):
    """A distribution with these requirements."""

    def __init__(self, version, *requires):
        self.text = f"Metadata-Version: 2.1\nName: x\nVersion: {version}\n"
        self.text += "".join(f"Requires-Dist: {one}\n" for one in requires)

    def read_text(self, filename):
        return self.text if filename == "METADATA" else None

    def locate_file(self, path):
        return Path(path)


def test_requirements_that_are_not_met_are_named():
    found = {
        "a": Fake("1", "b>=2", "c", "d<3; extra == 'more'", "e<1; python_version < '3'", "B[x]!=1.9", "??"),
        "b": Fake("1.5"),
    }
    assert packages.faults(found) == ["b is 1.5, a needs >=2", "c is missing, a needs it"]


def test_pairs_that_clash_are_named(monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda name: Fake("1") if "opencv" in name else None)
    assert packages.clashes()[0].startswith("opencv-python and opencv-python-headless are both installed")
    assert [one.state for one in checks._packages({})] == [DOUBTFUL] * 3


def test_what_is_needed_is_installed_and_has_a_size():
    needed = packages.closure()
    assert {"torch", "diffusers", "typer"} <= needed.keys() and "ray" not in needed
    assert packages.size_of(needed["typer"]) > 10_000
    assert states()["packages"][0][0] == GOOD


def test_env_shows_settings_but_nothing_secret(kg, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:password@mirror.example/x")
    monkeypatch.setenv("HF_HOME", str(Path("~/models").expanduser()))
    done = kg("env")
    assert done.code == 0 and "- HF_HOME: ~/models" in done.out and "HF_TOKEN" in done.out
    assert "secret" not in done.out and "password" not in done.out and "mirror.example" in done.out
    facts = json.loads(kg("env", "--json").out)
    assert facts["device"] == "cpu" and facts["torch"] and facts["platform"]

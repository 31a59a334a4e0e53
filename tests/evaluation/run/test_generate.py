import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from benchmark_data import OWN_METHOD, write_annotations, write_dreambench
from PIL import Image

from kgcli.config import SamplingConfig
from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.table import make
from kgcli.evaluation.benchmarks.dreambench import multi_plan, single_plan
from kgcli.evaluation.benchmarks.dreambench_data import SUBJECTS, open_dreambench
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import encode_image, finish, generate_run, shard_units

FEW = ("--subjects", "cat,dog,can", "-n", "2")
DEADLINE = 120  # seconds


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dreambench(tmp_path_factory.mktemp("dreambench") / "dataset")


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN_METHOD)
    return f"{path}:Colour"


def contents(run):
    """All files of a run's images and its manifest, by name."""
    paths = [*run.glob("images/**/*.png"), run / "manifest.jsonl", run / "plan.json"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def start_process(*args, **environment):
    command = [sys.executable, "-m", "kgcli", "eval", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def end(process):
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    return out


def num_images(run):
    return sum(1 for _ in run.glob("images/*/[!.]*.png"))


def kill_at(process, run, num):
    """Kill -9 a run as soon as it has `num` images; return True if it was still running."""
    until = time.monotonic() + DEADLINE
    while process.poll() is None and num_images(run) < num:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- killed and shared out


@pytest.mark.slow
def test_a_run_killed_at_five_points_ends_as_one_that_was_not(tmp_path, data, own):
    asked = ("dreambench", "--data", data, "--only", "generate", "--method", own, "-n", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end(start_process(*asked, "-o", whole))
    points = sorted(random.Random(0).sample(range(1, 700), 5))
    kills = [kill_at(start_process(*asked, "-o", killed), killed, num) for num in points]
    assert sum(kills) >= 4 and num_images(killed) < 750  # a fast machine may be past one of them
    end(start_process(*asked, "-o", killed))
    assert contents(killed) == contents(whole) and len(contents(whole)) == 752


def test_a_run_killed_before_its_plan_was_whole_starts_anew(kg, tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".plan.json.x.partial").write_text("{")
    assert (
        kg("eval", "dreambench", "--data", data, "-o", "run", "--method", "copy-input", *FEW, "--only", "generate").code
        == 0
    )


def test_two_processes_generate_what_one_generates_and_learn_each_subject_once(tmp_path, data, own):
    asked = ("dreambench", "--data", data, "--only", "generate", "--method", own, "--device", "cpu", *FEW)
    end(start_process(*asked, "-o", tmp_path / "one"))
    two = [
        start_process(*asked, "-o", tmp_path / "two", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in (1, 0)
    ]
    for process in two:
        end(process)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert sorted((tmp_path / "two" / "subjects" / "log").read_text().split()) == ["can", "cat", "dog"]


def test_shards_are_all_units_and_none_twice():
    units = [[number] for number in range(11)]
    for count in (1, 2, 3, 11, 13):
        shards = [shard_units(units, (number, count)) for number in range(count)]
        assert [unit for shard in shards for unit in shard] == units


@pytest.mark.slow
@pytest.mark.parametrize("method", ["own", "kosmosg"])
def test_ray_with_two_workers_generates_what_one_process_generates(kg, tmp_path, data, own, tiny_model, method):
    asked = ["eval", "dreambench", "--data", data, "--only", "generate", *FEW, "--device", "cpu"]
    asked += ["--method", own] if method == "own" else ["--model", tiny_model, "--steps", 2, "--size", 16]
    assert kg(*asked, "-o", "one").code == 0
    ran = kg(*asked, "-o", "ray", "--engine", "ray", "--workers", 2)
    assert ran.code == 0, ran.err
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_with_two_processes_generate_what_one_process_generates(kg, tmp_path, data, tiny_model, launcher):
    asked = ["eval", "dreambench", "--data", str(data), "--only", "generate", *FEW, "--device", "cpu"]
    asked += ["--model", str(tiny_model), "--steps", "2", "--size", "16"]
    assert kg(*asked, "-o", "one").code == 0
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "kgcli", *asked, "-o", str(tmp_path / "two")]
    ran = subprocess.run(command, timeout=DEADLINE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for count in (74, 76):  # whole prompts
        assert f"{count} of {count} images generated" in ran.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


# ---------------------------------------------------------------- methods


def test_kosmosg_goes_on_where_it_stopped(kg, tmp_path, data, tiny_model):
    asked = ["eval", "dreambench", "--data", data, "--only", "generate", "--subjects", "dog", "-n", 2]
    asked += ["--device", "cpu", "--model", tiny_model, "--steps", 2, "--size", 16]
    ran = kg(*asked, "-o", "whole")
    assert ran.code == 0 and ran.out.strip() == "whole"
    whole = contents(tmp_path / "whole")
    assert kg(*asked, "-o", "part").code == 0
    for name in ("manifest.jsonl", "images/dog/03_1.png", "images/dog/20_0.png", "images/dog/20_1.png"):
        (tmp_path / "part" / name).unlink()
    assert kg(*asked, "-o", "part").code == 0
    assert contents(tmp_path / "part") == whole
    line = json.loads((tmp_path / "whole" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["method"]["dtype"] == "float32"  # what auto is here, for elsewhere it is another
    assert line["method"]["scheduler"] == "dpm++-sigma-min" and line["method"]["guidance_scale"] == 7.5
    assert {"input_text", "scored_text", "seed", "sha256", "protocol"} <= line.keys() and line["method"]["versions"]
    other = kg(*asked[:-4], "--steps", 3, "--size", 16, "-o", "whole")
    assert other.code == 2 and "num_steps 2, not 3" in other.err


def test_two_images_are_read_and_the_decoder_alone_reads_words(kg, tmp_path, data):
    """The model that ships brings the text encoder that `sd` needs."""
    plan = multi_plan(open_dreambench(data), DreamBenchOptions(num_images=1), {})
    options = MethodOptions(device="cpu", sampling=SamplingConfig(num_inference_steps=1))
    items = plan.items[:2]
    generated = {name: make(name, options).draw(items, data, tmp_path) for name in ("kosmosg", "sd")}
    assert [len(images) for images in generated.values()] == [2, 2]
    assert generated["kosmosg"][0].tobytes() != generated["sd"][0].tobytes()


def test_copies_are_the_inputs(tmp_path, data):
    plan = single_plan(open_dreambench(data), DreamBenchOptions(subjects=("dog",), num_images=1), {})
    (copy,) = make("copy-input", MethodOptions(sampling=SamplingConfig(width=512, height=512))).draw(
        plan.items[:1], data, tmp_path
    )
    assert copy.tobytes() == Image.open(data / "dog" / "02.jpg").tobytes()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--method", "none"), 2, "there is no method none"),
        (("--method", "absent.py:Kind"), 2, "cannot be loaded"),
        (("--method", "json:JSONDecoder"), 2, "it lacks facts, prepare, draw"),
        (("--method", "json:Nothing"), 2, "no class Nothing"),
        (("--set", "steps=3"), 2, "no settings of its own"),
        (("--set", "steps"), 2, "NAME=VALUE"),
        (("--scheduler", "best"), 2, "--scheduler is best"),
        (("--size", "20"), 2, "multiple of 8"),
        (("--model", "nowhere/at/all"), 3, "no model folder"),
        (("--engine", "cloud"), 2, "--engine is cloud"),
        (("--only", "look"), 2, "--only is look"),
        (("--noise", "pink"), 2, "--noise is pink"),
        (("--images", "nowhere"), 2, "--images is nowhere"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(kg, tmp_path, data, without_engine, args, code, words):
    ran = kg("eval", "dreambench", "--data", data, "-o", "run", "--only", "generate", *args)
    assert (ran.code, words in ran.err) == (code, True), ran.err
    assert not (tmp_path / "run").exists()


def test_copies_of_words_alone_are_refused(kg, tmp_path):
    write_annotations(tmp_path, 9)
    ran = kg("eval", "coco", "--data", ".", "--num", 9, "--method", "copy-input", "-o", "run", "--only", "generate")
    assert ran.code == 2 and "needs an image" in ran.err


def test_coco_is_generated(kg, tmp_path, tiny_model):
    write_annotations(tmp_path, 12)
    asked = ["eval", "coco", "--data", ".", "--num", 10, "--model", tiny_model, "--steps", 2, "--size", 16]
    ran = kg(*asked, "--device", "cpu", "-o", "run", "--only", "generate")
    assert ran.code == 0, ran.err
    assert len((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()) == 10


# ---------------------------------------------------------------- images that are not ours


@pytest.fixture
def run(tmp_path, data):
    options = DreamBenchOptions(subjects=("dog",), num_images=1)
    plan = single_plan(open_dreambench(data), options, {"name": "copy-input"})
    run = RunFolder.start(tmp_path / "run", plan)
    generate_run(run, make("copy-input", MethodOptions()))
    return run


@pytest.mark.parametrize("spoil", ["cut", "empty", "other", "unmarked"])
def test_a_damaged_or_foreign_image_is_named_and_not_scored(run, spoil):
    path = run.path / "images" / "dog" / "03_0.png"
    content = path.read_bytes()
    other = (run.path / "images" / "dog" / "04_0.png").read_bytes()
    unmarked = encode_image(Image.new("RGB", (8, 8)), "")
    path.write_bytes({"cut": content[:-20], "empty": b"", "other": other, "unmarked": unmarked}[spoil])
    for step in (lambda: finish(run), lambda: generate_run(run, make("copy-input", MethodOptions()))):
        with pytest.raises(MissingError, match="images/dog/03_0.png"):
            step()
    path.rename(path.with_name("kept.png"))
    generate_run(run, make("copy-input", MethodOptions()))
    finish(run)
    assert path.read_bytes() == content


def test_an_image_changed_after_the_manifest_is_found(run):
    finish(run)
    (run.path / "images" / "dog" / "03_0.png").write_bytes(b"x")
    with pytest.raises(MissingError, match=r"images differ from manifest.jsonl, such as images/dog/03_0.png"):
        finish(run)


def test_a_run_that_is_not_complete_is_not_finished(run):
    (run.path / "images" / "dog" / "03_0.png").unlink()
    with pytest.raises(MissingError, match="1 of 25 images"):
        finish(run)


def test_another_folder_is_not_taken(run, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.start(tmp_path, run.plan)


def test_a_prompt_that_is_too_long_is_found_before_anything_is_generated(kg, tmp_path, tiny_model):
    (tmp_path / "captions.txt").write_text("a cat\n" * 9 + "a dog " * 200 + "\n")
    ran = kg(
        *("eval", "coco", "--captions", "captions.txt", "--model", tiny_model, "--device", "cpu", "--steps", 2),
        *("--size", 16, "--only", "generate", "-o", "run"),
    )
    assert ran.code == 2 and "000009.png cannot be generated" in ran.err and not (tmp_path / "run").exists()


def test_a_run_goes_on_when_its_data_has_moved(kg, tmp_path, data):
    asked = (
        "eval",
        "dreambench",
        "--subjects",
        "dog",
        "-n",
        1,
        "--method",
        "copy-input",
        "--only",
        "generate",
        "-o",
        "run",
    )
    shutil.copytree(data, tmp_path / "here")
    assert kg(*asked, "--data", "here").code == 0
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "images" / "dog" / "03_0.png").unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    ran = kg(*asked, "--data", tmp_path / "there")
    assert ran.code == 0 and contents(tmp_path / "run") == before, ran.err


def test_fingerprints_of_a_method_may_hold_tuples(tmp_path, data):
    plan = single_plan(open_dreambench(data), DreamBenchOptions(num_images=1), {"name": "mine", "range": (0, 1)})
    RunFolder.start(tmp_path / "run", plan)
    assert RunFolder.start(tmp_path / "run", plan).plan.method["range"] == [0, 1]


def test_subjects_are_a_set(data):
    plans = [
        single_plan(open_dreambench(data), DreamBenchOptions(subjects=names), {})
        for names in (("dog", "cat"), ("cat", "dog", "dog"), (), tuple(SUBJECTS))
    ]
    assert plans[0].protocol == plans[1].protocol and plans[2].protocol == plans[3].protocol


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--method", ":"), "--method : cannot be loaded"),
        (("--method", ".x:Y"), "cannot be loaded"),
        (("--method", "copy-input", "--steps", 0), "--steps is 0"),
        (("--method", "copy-input", "--scheduler", "foo"), "--scheduler is foo"),
        (("--method", "copy-input", "--size", 0), "0"),
        (("--method", "copy-input", "-o", "/proc/nowhere/run"), "cannot be created"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(kg, tmp_path, data, flags, words):
    ran = kg("eval", "dreambench", "--data", data, "--only", "generate", "-o", "run", *flags)
    assert ran.code == 2 and words in ran.err and "unexpected" not in ran.err, ran.err
    assert not (tmp_path / "run").exists()


def test_a_quiet_run_says_nothing(kg, tmp_path, data):
    asked = ("eval", "dreambench", "--data", data, "--only", "generate", "--method", "copy-input", *FEW)
    assert "150 of 150 images generated" in kg(*asked, "-o", "a").err
    assert kg(*asked, "-o", "b", "--quiet").err == ""


def test_a_plan_that_is_none_is_damaged(tmp_path):
    for text in ("null", "5", "[]", "{"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(MissingError, match=r"plan.json is damaged"):
            RunFolder.open(tmp_path)


def test_captions_are_utf8(kg, tmp_path):
    (tmp_path / "captions.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    ran = kg("eval", "coco", "--captions", "captions.txt", "--only", "generate", "-o", "run")
    assert ran.code == 2 and "is not UTF-8 text" in ran.err

"""`kg` as a user meets it: exit codes, words of errors, streams, and what is found before torch loads."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import kgcli

ROOT = str(Path(__file__).parents[2])
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}


def python(*args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], env=ENV, capture_output=True, text=True, timeout=300, **options)


# ---------------------------------------------------------------- start-up


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"], ["ls"], ["align", "nowhere"]])
def test_nothing_heavy_is_loaded_before_it_is_needed(args):
    probe = (
        f"import sys\nfrom kgcli.cli import main\ntry: main({args!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "if sys.argv[1:]: heavy |= {'typer', 'pydantic', 'yaml', 'PIL'} & set(sys.modules)\n"
        "print(heavy or 'none', file=sys.stderr)"
    )
    done = python("-c", probe, *(["strict"] if args == ["--help"] else []))
    assert done.stderr.endswith("none\n"), done.stderr


def test_help_takes_at_most_eight_times_an_empty_program():
    def seconds(*args: str) -> float:
        """Least processor time of a few runs: wall-clock time means little on a busy machine."""
        taken = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            python(*args)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(taken)

    assert seconds("-m", "kgcli", "--help") <= 8 * seconds("-c", "pass")


def test_version_and_help(kg):
    assert python("-m", "kgcli", "--version").stdout == f"kg {kgcli.__version__}\n"
    assert "generate" in python("-m", "kgcli").stdout
    assert "--guidance-scale" in kg("generate", "--help").out


# ---------------------------------------------------------------- wrong usage, before torch


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], "there is no command kg nonsense"),
        (["generate", "--nonsense"], "there is no option --nonsense"),
        (["generate"], "give one of"),
        (["generate", "a", "--from", "b.png"], "give one of"),
        (["generate", "a", "-n", "0"], "num_images (--num-images) is 0"),
        (["generate", "a", "-n", "x"], "-n"),
        (["generate", "a", "-s", "1", "-s", "2", "-n", "3"], "2 seeds give 2 images"),
        (["generate", "a", "-s", "-1"], "--seed is -1"),
        (["generate", "a", "-W", "17"], "--width is 17"),
        (["generate", "a", "-H", "99999"], "--height is 99999"),
        (["generate", "a", "--steps", "0"], "--steps is 0"),
        (["generate", "a", "-g", "nan"], "--guidance-scale is nan"),
        (["generate", "a", "--scheduler", "ddpm"], "must be one of"),
        (["generate", "a", "-o", "a.bmp"], "must end in one of"),
        (["generate", "a", "-o", "{name}.png"], "unknown field {name}"),
        (["generate", "a", "-o", "{seed.png"], "is not a template"),
        (["generate", "a", "-o", "{prompt}.png", "-n", "2"], "two images would be named"),
        (["generate", "a", "--overwrite", "--skip-existing"], "exclude each other"),
        (["generate", "<image:cat.png|wieght=1>"], "did you mean `weight`"),
        (["generate", "<image:cat.png"], "not closed"),
        (["generate", "a <image:-1>"], "--image"),
        (["generate", "a cat", "--image", "cat.png"], "no place in the prompt"),
        (["generate", "<image:cat.png>" * 4], "at most 3"),
        (["generate", "cat " * 80], "tokens long"),
        (["generate", "a", "--negative-prompt", "<image:cat.png>"], "text only"),
        (["edit", "cat.png"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_2_before_torch(kg, tiny_model, cat, without_engine, args, words):
    generates = args[0] in ("generate", "edit")
    done = kg(*args, *(["--model", tiny_model] if generates else []))
    assert (done.code, done.out) == (2, ""), done.err
    assert words in done.err and done.err.startswith("error: ") and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", "a <image:gone.png>"], "column 3: there is no image gone.png"),
        (["generate", "a <image:.>"], "is a folder"),
        (["generate", "a", "--model", "gone"], "no model folder gone"),
        (["generate", "a", "--model", "some/where", "--offline"], "not in the local cache"),
        (["generate", "--batch", "gone.txt"], "there is no file gone.txt"),
        (["generate", "--from", "cat.png"], "no kgcli metadata"),
        (["inspect", "cat.png"], "no kgcli metadata"),
        (["align", "nano/aling"], "nano/"),
        (["cat", "qqq"], "kg ls"),
    ],
)
def test_missing_things_exit_3_before_torch(kg, tiny_model, cat, without_engine, args, words):
    model = ["--model", tiny_model] if args[0] == "generate" and "--model" not in args else []
    done = kg(*args, *model)
    assert done.code == 3 and words in done.err, done.err


def test_errors_show_the_prompt_and_a_caret(kg, tiny_model, cat, without_engine):
    done = kg("generate", "\u732b <image:cat.png> and <image:no.png>", "--model", tiny_model)
    message, shown, caret = done.err.splitlines()
    assert "column 23" in message
    # The first character is two columns wide.
    assert caret.index("^") == 2 + shown.strip().index("<image:no") + 1


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("config.json", b"{", 3, "damaged"),
        ("config.json", b'{"vision": {"nonsense": 1}}', 4, "vision.nonsense"),
        ("config.json", None, 3, "config.json"),
        ("model.safetensors", None, 3, "no model.safetensors"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", 3, "damaged"),
        ("tokenizer/sentencepiece.model", b"x", 3, "damaged"),
        ("decoder/unet/diffusion_pytorch_model.safetensors", None, 3, "no weights in unet/"),
        ("decoder/vae/config.json", b"?", 3, "damaged"),
        ("decoder/scheduler/scheduler_config.json", None, 3, "scheduler"),
    ],
)
def test_a_broken_model_folder_is_named_before_torch(kg, tiny_model, tmp_path, without_engine, name, data, code, words):
    folder = tmp_path / "model"
    for source in tiny_model.rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(tiny_model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    done = kg("generate", "a cat", "--model", folder)
    assert done.code == code and words in done.err and done.err.count("\n") == 1, done.err


def test_weights_cut_short_are_found_before_torch(kg, tiny_model, tmp_path, without_engine):
    from kgcli.errors import MissingError
    from kgcli.weights.folder import check_safetensors

    path = tmp_path / "model.safetensors"
    path.write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(MissingError, match="its header states"):
        check_safetensors(path)


def test_an_unwritable_output_is_found_before_torch(kg, tiny_model, tmp_path, without_engine):
    (tmp_path / "file").write_text("x")
    done = kg("generate", "a cat", "--model", tiny_model, "-o", "file/out.png")
    assert done.code == 1 and "cannot be written" in done.err


def test_images_that_are_there_are_not_overwritten(kg, tiny_model, tmp_path, without_engine):
    (tmp_path / "out.png").write_text("mine")
    done = kg("generate", "a cat", "--model", tiny_model, "-o", "out.png")
    assert done.code == 2 and "--overwrite" in done.err
    assert kg("generate", "a cat", "--model", tiny_model, "-o", "out.png", "--skip-existing").code == 0
    assert (tmp_path / "out.png").read_text() == "mine"


def test_an_unexpected_failure_is_one_line_unless_debugged(kg, tiny_model, without_engine, monkeypatch):
    done = kg("generate", "a cat", "--model", tiny_model)  # the engine cannot be imported here
    assert done.code == 1 and done.err.splitlines()[-1].startswith("error: unexpected ") and "Traceback" not in done.err
    monkeypatch.setenv("KG_DEBUG", "1")
    assert "Traceback" in kg("generate", "a cat", "--model", tiny_model).err


# ---------------------------------------------------------------- generating


def test_stdout_holds_results_only(kg, tiny_model, cat, tmp_path):
    done = kg("generate", "a <image:cat.png>", "--model", tiny_model, "-o", "out/", "-s", "5", "-s", "9")
    assert done.code == 0
    assert done.lines == ["out/a-cat-5.png", "out/a-cat-9.png"] and done.err == ""
    assert all(Image.open(tmp_path / line).size == (16, 16) for line in done.lines)


def test_a_random_seed_is_printed_to_stderr(kg, tiny_model):
    done = kg("generate", "a cat", "--model", tiny_model, "--json", "-n", "2", "-o", "a.png")
    results = [json.loads(line) for line in done.lines]
    assert done.err == f"seed {results[0]['seed']}\n"
    assert [result["path"] for result in results] == ["a-1.png", "a-2.png"]
    assert results[1]["seed"] == results[0]["seed"] + 1
    assert kg("generate", "a cat", "--model", tiny_model, "-q", "-o", "b.png").err == ""


def test_the_same_seed_gives_the_same_bytes(kg, tiny_model, cat, tmp_path):
    flags = ["generate", "a <image:cat.png>", "--model", tiny_model]
    kg(*flags, "-s", "5", "-o", "a.png")
    kg(*flags, "-s", "4", "-n", "2", "-o", "b.png")  # seed 5 is the second here
    kg(*flags, "-s", "6", "-o", "c.png")
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.png", "b-2.png", "c.png"))
    assert a == b != c


def test_edit_is_generate_with_the_image_first(kg, tiny_model, cat, tmp_path):
    kg("edit", "cat.png", "add a hat", "--model", tiny_model, "-s", "1", "-o", "a.png")
    kg("generate", "<image:cat.png|fit=crop> add a hat", "--model", tiny_model, "-s", "1", "-o", "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_numbered_slot_gives_the_same_image_as_a_path(kg, tiny_model, cat, tmp_path):
    kg("generate", "a <image:-1>", "--image", "cat.png", "--model", tiny_model, "-s", "1", "-o", "a.png")
    kg("generate", "a <image:cat.png>", "--model", tiny_model, "-s", "1", "-o", "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_bad_line_of_a_batch_is_reported_and_the_rest_generated(kg, tiny_model, cat, tmp_path):
    lines = [
        "a cat",
        "a <image:gone.png>",
        "",
        json.dumps({"prompt": "a <image:-1>", "images": ["cat.png"], "seed": [1, 2], "out": "mine-{seed}.png"}),
        json.dumps({"prompt": "a cat", "sede": 1}),
        json.dumps({"prompt": "a cat", "steps": "many"}),
        "{broken",
    ]
    (tmp_path / "batch.txt").write_text("\n".join(lines), encoding="utf-8")
    done = kg("generate", "--batch", "batch.txt", "--model", tiny_model, "-o", "b.png", "-s", "7")
    assert done.code == 6
    assert done.lines == ["b-1.png", "mine-1.png", "mine-2.png"]
    for words in (
        "line 2: column 3: there is no image",
        "line 5: sede",
        "line 6: steps",
        "line 7: the line is damaged",
    ):
        assert words in done.err
    assert "4 of the batch's lines failed" in done.err


def test_an_unknown_device_or_dtype_is_refused(kg, tiny_model):
    done = kg("generate", "a cat", "--model", tiny_model, "--device", "abacus")
    assert done.code == 2 and "abacus" in done.err
    assert kg("generate", "a cat", "--model", tiny_model, "--dtype", "int8").code == 2
    done = kg("generate", "a cat", "--model", tiny_model, "--device", "cuda:99")
    assert done.code == 4 and "no such device" in done.err


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_half_written(tiny_model, tmp_path):
    command = [sys.executable, "-m", "kgcli", "generate", "a cat", "--model", str(tiny_model)]
    command += ["-n", "5000", "-o", "{index}.png", "-s", "1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in a shell's background ignore it
    ) as kg:
        assert kg.stdout.readline() == "1.png\n"
        kg.send_signal(signal.SIGINT)
        out, err = kg.communicate(timeout=300)
    assert kg.returncode == 130 and "interrupted" in err and "Traceback" not in err
    written = {path.name for path in tmp_path.iterdir()}
    assert {"1.png", *out.split()} <= written and not any("partial" in name for name in written)
    for name in written:
        Image.open(tmp_path / name).load()


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m kgcli cat nano/nowhere | true; {sys.executable} -m kgcli --help | true"
    done = subprocess.run(["bash", "-c", command], env=ENV, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# ---------------------------------------------------------------- shipped files


def test_shipped_recipes_are_listed_printed_copied_and_checked(kg, tmp_path):
    names = [name for name in kg("ls", "--names").lines if not name.endswith(".png")]
    assert names and names == sorted(names)
    printed = kg("cat", names[0])
    assert "stage:" in printed.out
    assert kg("cp", names[0], "mine.yaml").lines == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text("utf-8") == printed.out
    assert kg("cp", names[0], "mine.yaml").code == 2
    assert kg("validate", "mine.yaml").code == 0
    (tmp_path / "mine.yaml").write_text("stage: align\nnonsense: 1\n")
    assert kg("validate", "mine.yaml").code == 2
    assert kg("validate", "mine.yaml", names[0]).code == 6


def test_an_unknown_recipe_key_is_named_before_torch(kg, without_engine):
    done = kg("pretrain", "smoke/pretrain", "stepps=3")
    assert done.code == 2 and "stepps" in done.err


def test_every_recipe_is_run_by_the_command_it_names(kg):
    from kgcli.recipe import load_recipe

    for name in kg("ls", "--names").lines:
        if name.endswith(".png"):
            continue
        stage = load_recipe(name).stage
        command = [stage] if stage in ("pretrain", "align", "instruct") else ["base", stage]
        assert kg(*command, "--help").code == 0, name


def test_what_bitsandbytes_logs_while_it_is_imported_is_hidden_from_every_command(kg):
    """It warns of a kernel that it has not on processors with AVX512-BF16."""
    logger = logging.getLogger("bitsandbytes")
    logger.setLevel(logging.NOTSET)
    assert kg("ls").code == 0
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)

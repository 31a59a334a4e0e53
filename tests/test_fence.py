"""A stranger's image, run folder or checkpoint never chooses a path or a download."""

import dataclasses
import json
import os
import shutil

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scored_run import make_subject_run

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.nano_world import VERSION
from kgcli.evaluation.report.compare import open_runs
from kgcli.evaluation.report.page import build_page
from kgcli.evaluation.report.page.thumbnails import Thumbnails
from kgcli.evaluation.run import nano_score as nano_scoring
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import Scores
from kgcli.files import sha256
from kgcli.weights.config import read_model_config
from kgcli.weights.folder import open_model

FEW = ("nano_cat", "nano_dog")
ELSEWHERE = ["/etc/passwd.png", "../secret.png", "images/../../secret.png", "a\\..\\b.png", "images/\0.png", "."]


@pytest.fixture
def run(tmp_path):
    make_subject_run(tmp_path / "run", subjects=FEW, num_images=1)
    return tmp_path / "run"


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def first_item(file, group, **changes):
    items = json.loads(file.read_text("utf-8"))[group]
    change(file, **{group: [{**items[0], **changes}, *items[1:]]})


def test_run_files_say_nothing_of_the_machine(run, tmp_path):
    for name in ("plan.json", "scores.json"):
        assert str(tmp_path) not in (run / name).read_text("utf-8")


def test_a_plan_of_an_earlier_version_chooses_no_data_folder(run, tmp_path):
    change(run / "plan.json", data=str(tmp_path / "chosen"))
    change(run / "scores.json", data=str(tmp_path / "chosen"))
    assert RunFolder.open(run).plan.data == ""
    assert Scores.read(run).data == ""


def test_scoring_makes_and_reads_no_folder_that_the_plan_names(kg, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    looked_in = []
    monkeypatch.setattr("kgcli.evaluation.run.benchmark.score_run", lambda run, ready: looked_in.append(run.plan.data))
    for item in RunFolder.open(run).plan.items:
        Image.new("RGB", (8, 8)).save(run / item.path)
    protocol = {**RunFolder.open(run).plan.protocol, "version": VERSION}
    change(run / "plan.json", data=str(tmp_path / "chosen"), protocol=protocol)
    RunFolder.open(run).write_manifest()
    score = ("eval", "dreambench", "--suite", "nano", "--only", "score", "-o", "run")
    assert kg(*score).code == 0
    assert kg(*score, "--data", "mine").code == 0
    assert looked_in == [str(tmp_path / f"cache/kgcli/nano-dreambench-{VERSION}"), str(tmp_path / "mine")]
    assert not (tmp_path / "chosen").exists()


def test_a_value_that_a_plan_lacks_or_exaggerates_is_named(run):
    opened = RunFolder.open(run)
    with pytest.raises(MissingError, match="protocol.data_sha256"):
        opened.plan.protocol_value("data_sha256", str)
    plan = dataclasses.replace(opened.plan, protocol={"num_real": 10**9})
    with pytest.raises(MissingError, match="num_real is 1000000000"):
        nano_scoring._num_real(RunFolder(run, plan))


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("file, group", [("plan.json", "items"), ("scores.json", "pictures")])
def test_a_path_that_leads_elsewhere_is_refused(run, file, group, path):
    read = RunFolder.open if file == "plan.json" else Scores.read
    first_item(run / file, group, path=path)
    with pytest.raises(MissingError, match=rf"{file} is damaged .*{group}\.0\.path: must be a path below"):
        read(run)
    first_item(run / file, group, path="images/a.png", inputs=[path])
    with pytest.raises(MissingError, match=rf"{group}\.0\.inputs\.0"):
        read(run)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_run_is_not_followed(run, tmp_path, link):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = json.loads((run / "scores.json").read_text())["pictures"][0]["path"]
    if link == "file":
        (run / path).unlink()
        (run / path).symlink_to(tmp_path / "secret.png")
    else:
        shutil.move(run / "images", tmp_path / "images")
        (run / "images").symlink_to(tmp_path / "images")
    with pytest.raises(MissingError, match="link that leads out"):
        build_page(open_runs([run]))
    with pytest.raises(MissingError, match="link that leads out"):
        RunFolder.open(run)


def test_images_of_a_page_pass_the_limits_of_all_images(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "icon.png", "ICO")
    thumbnails = Thumbnails(64)
    assert "no image" in thumbnails.image(tmp_path / "bomb.png", "")
    assert "no image" in thumbnails.image(tmp_path / "icon.png", "")
    assert thumbnails.num_missing == 2


@pytest.mark.parametrize(
    "decoder", ["/somewhere/sd", "../sd", "~/sd", "someone/decoder", "decoder/../../sd"], ids=lambda name: name
)
def test_a_model_folder_chooses_no_decoder_outside_itself(tiny_model, tmp_path, decoder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    change(folder / "config.json", decoder=decoder)
    with pytest.raises(UsageError, match=r"names a decoder that is not in the folder.*--decoder"):
        open_model(str(folder))
    assert open_model(str(folder), str(folder / "decoder")).decoder == str(folder / "decoder")


def test_a_converted_model_holds_its_decoder_and_no_path_of_the_machine(kg, tiny_model, tmp_path):
    assert kg("convert", tiny_model, "published.pt", "--to", "published").code == 0
    tokenizer = tiny_model / "tokenizer" / "sentencepiece.model"
    done = kg("convert", "published.pt", "model", "--spm", tokenizer, "--decoder", tiny_model / "decoder")
    assert done.code == 0, done.err
    assert read_model_config(tmp_path / "model").decoder == "decoder"
    few = ("-W", 16, "-H", 16, "--steps", 1)
    assert kg("generate", "a cat", "--model", "model", "-s", 1, *few).code == 0
    for path in (tmp_path / "model").rglob("*.*"):
        assert not path.is_file() or os.fsencode(tmp_path) not in path.read_bytes(), path


def replayed_with(tmp_path, entry):
    """An image whose metadata have one adapter more."""
    with Image.open(tmp_path / "out.png") as image:
        record = json.loads(image.info["kgcli"])
        chunks = PngInfo()
        chunks.add_itxt("kgcli", json.dumps({**record, "adapters": [entry]}))
        image.save(tmp_path / "stranger.png", pnginfo=chunks)


def test_an_image_fetches_nothing_unless_it_is_allowed(kg, tiny_model, tmp_path, cat):
    assert kg("generate", "a cat", "--model", tiny_model, "-o", "out.png", "-s", "1").code == 0
    image = {"name": "cat.png", "sha256": sha256(cat)}
    model = {"name": "someone/controlnet", "sha256": ""}
    replayed_with(tmp_path, {"type": "controlnet", "kind": "canny", "scale": 1.0, "image": image, "model": model})
    asked = ("generate", "--from", "stranger.png", "--model", tiny_model, "-o", "again.png")
    done = kg(*asked)
    assert done.code == 2 and "someone/controlnet on the Hub; allow downloads with --allow-download" in done.err
    done = kg(*asked, "--allow-download", "--offline")
    assert done.code == 3 and "--allow-download" not in done.err
    assert kg("generate", "a cat", "--allow-download").code == 2


def test_a_model_folder_names_no_sizes_outside_itself(tiny_model, tmp_path):
    from dataclasses import replace

    from kgcli.weights.folder import SD15_SIZES, open_model

    found = open_model(str(tiny_model))
    single = tmp_path / "decoder.safetensors"
    single.write_bytes(b"")
    (tmp_path / "outside").mkdir()
    for named in (str(tmp_path / "outside"), "../outside"):
        hostile = replace(found, decoder=str(single), cfg=found.cfg.model_copy(update={"decoder": named}))
        assert hostile.decoder_sizes == SD15_SIZES


def test_the_settings_of_a_python_caller_are_checked_too(tiny_model):
    from kgcli import engine
    from kgcli.errors import UsageError

    model = engine.load(str(tiny_model), device="cpu")
    for wrong in ({"guidance_rescale": float("nan")}, {"guidance_rescale": -3.0}, {"num_images": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            model.generate("a cat", seed=0, **wrong)

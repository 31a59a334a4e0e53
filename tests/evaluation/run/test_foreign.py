import csv
import shutil

import pytest
from benchmark_data import write_dreambench
from PIL import Image

from kgcli.errors import MissingError
from kgcli.evaluation.benchmarks.nano import coco_plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.foreign import find_images
from kgcli.evaluation.run.generate import finish

ASKED = ("--subjects", "dog", "-n", "1", "--only", "generate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dreambench(tmp_path_factory.mktemp("dreambench") / "dataset")


@pytest.fixture
def images(tmp_path):
    """25 images of another system, of several kinds."""
    folder = tmp_path / "theirs"
    (folder / "dog").mkdir(parents=True)
    for prompt in range(25):
        Image.new("RGB", (8, 8), (prompt, 0, 0)).save(folder / "dog" / f"{prompt:02d}_0.{('png', 'jpg')[prompt % 2]}")
    return folder


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(images):
    paths = sorted(images.rglob("*.*"))
    return [
        {"path": f"theirs/dog/{path.name}", "subject": "dog", "prompt": int(path.name[:2]), "image": 0}
        for path in paths
    ]


def test_a_folder_becomes_a_run_that_is_asked_the_same(kg, tmp_path, data, images):
    asked = ("eval", "dreambench", "--data", data, *ASKED)
    ran = kg(*asked, "--images", images, "--name", "theirs", "-o", "run")
    assert ran.code == 0, ran.err
    assert kg(*asked, "--method", "copy-input", "-o", "ours").code == 0
    theirs, ours = (RunFolder.open(tmp_path / name).plan for name in ("run", "ours"))
    assert theirs.protocol == ours.protocol and theirs.method["name"] == "theirs"
    assert (tmp_path / "run" / theirs.items[1].path).read_bytes() == (images / "dog" / "01_0.jpg").read_bytes()
    manifest = (tmp_path / "run" / "manifest.jsonl").read_bytes()
    (tmp_path / "run" / "manifest.jsonl").unlink()
    (tmp_path / "run" / theirs.items[1].path).unlink()
    assert kg(*asked, "--images", images, "--name", "theirs", "-o", "run").code == 0
    assert (tmp_path / "run" / "manifest.jsonl").read_bytes() == manifest


def test_a_table_gives_the_same_run_as_the_folder(kg, tmp_path, data, images):
    write_table(tmp_path / "theirs.csv", rows_of(images))
    for source, out in (("theirs", "a"), ("theirs.csv", "b")):
        assert kg("eval", "dreambench", "--data", data, *ASKED, "--images", source, "-o", out).code == 0
    assert (tmp_path / "a" / "manifest.jsonl").read_bytes() == (tmp_path / "b" / "manifest.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: (folder / "dog" / "03_0.jpg").unlink(),
            "24 of 25 images are present; missing are dog/03_0.png",
        ),
        (
            lambda folder: shutil.copy(folder / "dog" / "03_0.jpg", folder / "dog" / "03_1.jpg"),
            "do not belong to this benchmark",
        ),
        (
            lambda folder: shutil.copy(folder / "dog" / "03_0.jpg", folder / "dog" / "03_0.webp"),
            "do not belong to this benchmark",
        ),
        (lambda folder: (folder / "dog" / "03_0.jpg").write_bytes(b"x"), "03_0.jpg is not an image"),
        (
            lambda folder: Image.new("L", (600, 3)).save(folder / "dog" / "03_0.jpg"),
            "1 files cannot be scored, the first of them",
        ),
    ],
)
def test_exactly_the_expected_images_are_taken(kg, tmp_path, data, images, spoil, words):
    spoil(images)
    ran = kg("eval", "dreambench", "--data", data, *ASKED, "--images", images, "-o", "run")
    assert ran.code in (2, 3) and words in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "25"}, "line 2: no such item"),
        ({"prompt": "1"}, "already has an image"),
        ({"path": "theirs/dog/none.png"}, "none.png does not exist"),
        ({"path": "theirs.txt"}, "must end in one of .png"),
        ({"scored_text": "a cat"}, "the benchmark's is 'a dog in the jungle'"),
    ],
)
def test_a_table_is_checked_line_by_line(kg, tmp_path, data, images, change, words):
    rows = [{**row, "scored_text": ""} for row in rows_of(images)]
    rows[0].update(change)
    write_table(tmp_path / "theirs.csv", rows)
    ran = kg("eval", "dreambench", "--data", data, *ASKED, "--images", "theirs.csv", "-o", "run")
    assert ran.code in (2, 3) and words in ran.err, ran.err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(lambda text: text.replace(",", ";"), "has no column path"), (lambda text: text, "")],
)
def test_tables_of_spreadsheets(kg, tmp_path, data, images, spoil, words):
    """They begin with a mark, and some have other separators."""
    table = write_table(tmp_path / "theirs.csv", rows_of(images))
    table.write_text(spoil(table.read_text()), encoding="utf-8-sig")
    ran = kg("eval", "dreambench", "--data", data, *ASKED, "--images", "theirs.csv", "-o", "run")
    assert ran.code == (2 if words else 0) and words in ran.err, ran.err


def test_images_that_were_taken_stay_those(kg, tmp_path, data, images):
    asked = ("eval", "dreambench", "--data", data, *ASKED, "--images", images, "-o", "run")
    assert kg(*asked).code == 0
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "run" / "images" / "dog" / "04_0.png")
    ran = kg("eval", "dreambench", "--only", "score", "-o", "run", "--offline", "--weights", tmp_path, "--data", data)
    assert ran.code == 3
    (tmp_path / "run" / "manifest.jsonl").unlink()
    with pytest.raises(MissingError, match="differ from those that were imported"):
        finish(RunFolder.open(tmp_path / "run"))


def test_a_name_is_text(kg, tmp_path, data, images):
    ran = kg("eval", "dreambench", "--data", data, *ASKED, "--images", images, "-o", "run", "--name", "a\udcffb")
    assert ran.code == 2 and "--name is" in ran.err and not (tmp_path / "run").exists()


def test_other_images_do_not_join_a_run(kg, tmp_path, data, images):
    asked = ("eval", "dreambench", "--data", data, *ASKED, "--images", images, "-o", "run")
    assert kg(*asked).code == 0
    Image.new("RGB", (8, 8), "blue").save(images / "dog" / "04_0.png")
    ran = kg(*asked)
    assert ran.code == 2 and "holds another run" in ran.err


@pytest.mark.parametrize("table", [False, True])
def test_images_of_a_nano_suite_have_the_size_of_its_world(tmp_path, table):
    plan = coco_plan("0" * 64, tmp_path, 2, 0, {})
    for item in plan.items:
        path = tmp_path / "theirs" / item.path.removeprefix("images/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (128, 128), "red").save(path)
    rows = [{"path": f"theirs/{item.path.removeprefix('images/')}", "prompt": item.prompt} for item in plan.items]
    given = write_table(tmp_path / "theirs.csv", rows) if table else tmp_path / "theirs"
    assert len(find_images(given, plan)) == 2
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.raises(MissingError, match="has 64 x 64 pixels; images of nano-coco have 128 x 128"):
        find_images(given, plan)

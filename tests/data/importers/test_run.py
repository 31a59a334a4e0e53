import json
import os

import foreign
import pytest
from foreign import image_bytes

from kgcli.data.importers import run
from kgcli.data.importers.base import ImportOptions
from kgcli.data.importers.run import ImportPlan, run_import
from kgcli.data.importers.table import find_importer
from kgcli.data.shards.layout import read_dataset
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.files import sha256


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.jpg").write_bytes(image_bytes(number))
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (folder / "3.jpg").write_bytes(b"broken")
    return folder


def plan(source, folder, layout="folder", **changes):
    changes = {"rows_per_shard": 3, "name": "photos", **changes}
    return ImportPlan(importer=find_importer(layout), source=str(source), folder=folder, **changes)


def hashes(folder):
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def test_an_import_counts_and_names_its_faults(photos, tmp_path):
    done = run_import(plan(photos, tmp_path / "out"))
    assert (done.rows, done.shards, done.faults, done.kept) == (6, 3, 1, 0)
    assert "3.jpg is not an image" in str(done) and "6 rows in 3 shards" in str(done)
    (fault,) = [json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    assert fault["shard"] == "photos-00001.tar" and fault["origin"] == "3.jpg"
    dataset = read_dataset(tmp_path / "out")
    assert [shard.rows for shard in dataset.shards] == [3, 2, 1] and dataset.kinds == {"pair": 6}
    assert dataset.made_by["faults"] == 1


def test_a_second_import_makes_only_what_is_missing(photos, tmp_path):
    out = tmp_path / "out"
    run_import(plan(photos, out))
    before = hashes(out)
    (out / "photos-00001.parquet").unlink()  # as after a kill between a tar and its index
    (out / ".photos-00002.tar.0123.partial").write_bytes(b"half")
    (out / "photos-00002.tar").unlink()
    os.utime(out / "photos-00000.tar", ns=(1, 1))
    done = run_import(plan(photos, out))
    assert done.kept == 1 and (out / "photos-00000.tar").stat().st_mtime_ns == 1
    assert hashes(out) == before and not list(out.glob(".*.partial"))
    with pytest.raises(UsageError, match="another import"):
        run_import(plan(photos, out, rows_per_shard=4))


def test_another_source_of_the_same_name_is_refused(photos, tmp_path):
    out = tmp_path / "out"
    run_import(plan(photos, out))
    before = hashes(out)
    for number, names in enumerate((["0", "1", "2"], ["a", "b"])):  # other images of the same names; other names
        other = tmp_path / str(number) / photos.name
        other.mkdir(parents=True)
        for name in names:
            (other / f"{name}.jpg").write_bytes(image_bytes(1, side=90))
            (other / f"{name}.txt").write_text("another caption")
        with pytest.raises(UsageError, match="another import, source or version"):
            run_import(plan(other, out))
    assert hashes(out) == before


def test_an_import_under_other_rules_does_not_go_on(photos, tmp_path, monkeypatch):
    run_import(plan(photos, tmp_path / "out"))
    monkeypatch.setattr(run, "RULES", run.RULES + 1)
    with pytest.raises(UsageError, match="another import, source or version"):
        run_import(plan(photos, tmp_path / "out"))


def test_a_longer_limit_goes_on(photos, tmp_path):
    out = tmp_path / "out"
    run_import(plan(photos, out, limit=2))
    done = run_import(plan(photos, out))
    assert done.rows == 6 and done.kept == 0
    run_import(plan(photos, tmp_path / "whole"))
    assert {name: one for name, one in hashes(out).items() if name != "README.md"} == {
        name: one for name, one in hashes(tmp_path / "whole").items() if name != "README.md"
    }


def test_a_fault_stops_it_on_request(photos, tmp_path):
    with pytest.raises(MissingError, match="3.jpg"):
        run_import(plan(photos, tmp_path / "out", stop_on_fault=True))


def test_nothing_imported_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"broken")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(MissingError, match=r"gave no row of 1 items; the first fault: a.jpg is not"):
        run_import(plan(tmp_path, tmp_path / "out"))


def test_options_without_a_use_are_refused(photos, tmp_path):
    with pytest.raises(UsageError, match="folder has no use for --images"):
        run_import(plan(photos, tmp_path / "out", options=ImportOptions(images=photos)))


def test_a_record_that_cannot_be_is_a_fault(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tsv").write_text("\t".join(["caption", "", *[foreign.base64_image(1)] * 2]) + "\n")
    with pytest.raises(MissingError, match="at least 1 character"):
        run_import(plan(tmp_path / "d", tmp_path / "out", "published-instructpix2pix"))


def test_the_command(kg, photos, tmp_path):
    ran = kg("data", "import", "folder", photos, "--to", "shards")
    assert ran.code == 0, ran.err
    assert ran.lines[0] == "6 rows in 1 shards" and "1 faults, listed in faults.jsonl" in ran.out
    assert kg("data", "import", "foldre", photos, "--to", "shards").code == 2
    assert kg("data", "import", "coco", photos / "no", "--to", "x", "--images", photos).code == 3
    assert "kohya" not in kg("data", "layouts").out
    assert len(kg("data", "layouts").lines) == 14


def test_images_are_read_by_their_content_not_their_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image_bytes(1, suffix="png"))
    (tmp_path / "a.txt").write_text("a")
    (item,) = find_importer("folder").items(str(tmp_path), ImportOptions())
    ((record, _),) = item.read()
    assert record.image == "png"
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageError):
        list(item.read())

"""One bad record of a foreign data set is a fault of its own, and the others are imported."""

import json
import zipfile

import foreign
import pytest
from foreign import image_bytes
from test_layouts import read

from kgcli.data.importers.documents import UrlImages
from kgcli.data.shards.records import MAX_RECORD_BYTES
from kgcli.errors import MissingError, UsageError


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'7,"two" dogs', "it is damaged"),
        (b"7,two,dogs,more", "more cells"),
        (b"7,caf\xe9", "not UTF-8"),
        (b"7," + b"a" * 200_000, "it is damaged: field larger"),
    ],
)
def test_a_bad_line_of_a_table_is_a_fault_of_its_own(tmp_path, bad, reason):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one cat\n" + bad + b"\n2,a bird\n")
    found, faults, _ = read("text", tmp_path / "a.csv")
    assert [record.text for record, _ in found] == ["one cat", "a bird"]
    assert len(faults) == 1 and "a.csv line 3: " in faults[0] and reason in faults[0]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_line_that_is_not_utf8_is_a_fault_of_its_own(tmp_path, name):
    lines = [b'"one cat"', b'"caf\xe9"', b'"a bird"']
    (tmp_path / name).write_bytes(b"\n".join(lines))
    found, faults, _ = read("text", tmp_path / name)
    assert len(found) == 2 and len(faults) == 1 and f"{name} line 2: it is not UTF-8 text" in faults[0]


def test_a_bad_entry_of_a_list_is_a_fault_of_its_own(tmp_path):
    (tmp_path / "a.json").write_text('["one cat", 7, {"text": "a bird"}]')
    found, faults, _ = read("text", tmp_path / "a.json")
    assert len(found) == 2 and len(faults) == 1 and "a.json entry 2: it is neither a text nor an object" in faults[0]


def test_a_file_of_texts_that_cannot_be_read_leaves_the_others(tmp_path):
    (tmp_path / "a.json").write_text('["one cat"')
    (tmp_path / "b.txt").write_bytes("UTF-16".encode("utf-16"))
    (tmp_path / "c.txt").write_text("a bird")
    found, faults, _ = read("text", tmp_path)
    assert [record.text for record, _ in found] == ["a bird"] and len(faults) == 2
    assert "a.json is damaged" in faults[0] and "b.txt is not UTF-8 text" in faults[1]


def test_bad_lines_of_open_images_are_faults_of_their_own(tmp_path):
    names = foreign.write_open_images(tmp_path)
    csv, captions = tmp_path / "train-images.csv", tmp_path / "narratives.jsonl"
    first, *lines = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(first + b"0,t\xffrain,x,0.0\n" + b"0,train," + b"a" * 200_000 + b",0\n" + b"".join(lines))
    told = [captions.read_text(), '{"image_id": ', '{"image_id": "x", "caption": ""}', '{"caption": "no id"}', ""]
    captions.write_text("\n".join(told[1:3] + [told[3]] + told[:1]))
    found, faults, _ = read("open-images", csv, images=tmp_path / "images", columns={"captions": str(captions)})
    assert [(record.origin, record.caption) for record, _ in found] == [(names[0], "Red."), (names[1], "")]
    named = (
        "narratives.jsonl line 1",
        "line 2: caption",
        "line 3 has no image_id",
        "line 2: it is not UTF-8",
        "line 3",
    )
    assert len(faults) == 6 and all(name in fault for name, fault in zip(named, faults, strict=False))
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MissingError, match="has no column ImageID"):
        read("open-images", tmp_path / "no.csv", images=tmp_path / "images")


@pytest.mark.parametrize("layout", ["coco", "open-images", "mmc4"])
def test_a_layout_that_names_images_needs_their_folder(tmp_path, layout):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UsageError, match=f"{layout} needs --images FOLDER, "):
        read(layout, tmp_path / "a.jsonl")
    with pytest.raises(MissingError, match="there is no folder .*nowhere"):
        read(layout, tmp_path / "a.jsonl", images=tmp_path / "nowhere")


def test_a_damaged_archive_of_documents_leaves_the_others(tmp_path):
    foreign.write_mmc4(tmp_path)
    source = tmp_path / "docs_shard_0_v2.jsonl"
    (tmp_path / "docs").mkdir()
    source.rename(tmp_path / "docs" / "b.jsonl")
    (tmp_path / "docs" / "a.zip").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "docs" / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c.jsonl", json.dumps({"text_list": ["a"] * 5000}) + "\n")
    data = bytearray((tmp_path / "docs" / "c.zip").read_bytes())
    data[60:80] = bytes(20)
    (tmp_path / "docs" / "c.zip").write_bytes(data)
    found, faults, skipped = read("mmc4", tmp_path / "docs", images=tmp_path / "images")
    assert len(found) == 1 and len(skipped) == 1 and len(faults) == 3
    assert "a.zip cannot be read" in faults[0] and "c.zip cannot be read" in faults[2]


@pytest.mark.parametrize("told", [b"{}" + b" " * MAX_RECORD_BYTES, b'{"url": '])
def test_the_record_of_a_download_is_read_within_limits(tmp_path, told):
    for stem, record in (("a", told), ("b", json.dumps({"url": "https://example.org/b"}).encode())):
        (tmp_path / f"{stem}.jpg").write_bytes(image_bytes(1))
        (tmp_path / f"{stem}.json").write_bytes(record)
    (tmp_path / "00000_stats.json").write_bytes(told)  # of no image
    images = UrlImages(tmp_path)
    assert list(images.faults) == ["a"] and images.read("https://example.org/b") == image_bytes(1)


def test_a_damaged_file_of_a_data_set_is_a_fault_after_its_good_rows(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "hf").mkdir()
    lines = "".join(json.dumps({"text": f"{n} things"}) + "\n" for n in range(3))
    (tmp_path / "hf" / "train-00000.jsonl").write_text(lines)
    (tmp_path / "hf" / "train-00001.jsonl").write_text('{"text": \n')
    found, faults, _ = read("hugging-face", tmp_path / "hf")
    assert len(found) == 3 and len(faults) == 1 and "hf train is damaged from row 3 on" in faults[0]

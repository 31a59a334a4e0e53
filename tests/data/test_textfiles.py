"""Captions and prompts in files as editors, shells and spreadsheets write them."""

import json
import os

import pytest

from kgcli.data.entries import data_files, is_data
from kgcli.data.textfiles import read_entries
from kgcli.errors import KgError, MissingError, UsageError
from kgcli.evaluation.benchmarks.coco import choose_captions

CAT_AND_DOG = {
    "mark.txt": "a cat\na dog\n".encode("utf-8-sig"),
    "windows.txt": b"a cat\r\na dog\r\n",
    "mac.txt": b"a cat\ra dog\r",
    "separators.txt": "a\u2028cat\na\x85dog\n".encode(),
    "feeds.txt": b"a\x0bcat\na\x0cdog\n",
    "blank.txt": b"a cat\n\n   \na dog",
    "list.json": json.dumps(["a cat", "a dog"]).encode(),
    "objects.json": json.dumps([{"caption": "a cat"}, {"caption": "a dog"}]).encode(),
    "coco.json": json.dumps({"annotations": [{"image_id": 1, "caption": c} for c in ("a cat", "a dog")]}).encode(),
    "mark.jsonl": '{"caption": "a cat"}\n{"caption": "a dog"}\n'.encode("utf-8-sig"),
    "UPPER.JSONL": b'{"caption": "a cat"}\n"a dog"\n',
    "table.tsv": b"id\tcaption\n1\ta cat\n2\ta dog\n",
    "table.CSV": b'id,caption\n1,a cat\n2,"a dog"\n',
}
REFUSED = {
    "utf16.txt": ("a cat\n".encode("utf-16"), "not UTF-8"),
    "number.json": (b"5", "a JSON list"),
    "cut.json": (b'["a cat"', "not valid JSON"),
    "columns.csv": (b"id,text\n1,a cat\n", "line 2: no caption; write"),
    "quote.csv": (b'id,caption\n1,"a cat\n', "unexpected end of data"),
    "cut.jsonl": (b'{"caption": "a cat"\n', "line 1: "),
}


@pytest.mark.parametrize("name", CAT_AND_DOG)
def test_captions_are_read_by_the_kind_of_file(tmp_path, name):
    (tmp_path / name).write_bytes(CAT_AND_DOG[name])
    assert [one.text for one in choose_captions(str(tmp_path / name), None).chosen] == ["a cat", "a dog"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_captions_is_an_error_of_one_line(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        choose_captions(str(tmp_path / name), None)
    assert "\n" not in str(caught.value)


def test_a_bad_line_is_an_error_among_the_others(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": 1}\n{"prompt"\n"x"\n')
    labels, entries = zip(*read_entries(str(tmp_path / "a.jsonl")), strict=True)
    assert labels == ("line 1", "line 2", "line 3")
    assert entries[0] == {"prompt": 1} and isinstance(entries[1], KgError) and entries[2] == "x"
    with pytest.raises(MissingError):
        list(read_entries(str(tmp_path / "absent.txt")))


def test_what_systems_put_into_folders_is_not_data(tmp_path):
    for name in ("a.png", "b.JPG", "._a.png", "__MACOSX/a.png", "@eaDir/a.png", ".ipynb_checkpoints/a.png", "c.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/d.png").touch()
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")
    found = data_files(tmp_path / "data", suffixes=(".png", ".jpg"), recursive=True)
    assert [os.path.relpath(path, tmp_path / "data") for path in found] == ["a.png", "b.JPG", "linked/d.png"]
    assert not is_data(".hidden") and is_data("a")

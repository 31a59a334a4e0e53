"""Conditions on the columns of other programs' shards: columns of all shards, and cells of any length."""

import json
import re

import pytest
from foreign_shards import encoded, solid, write_tar

from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.table import find_importer
from kgcli.data.shards import filters, index, scan, storage
from kgcli.data.shards.filters import MAX_CELL, MAX_COLUMNS, told_text
from kgcli.data.shards.index import open_index
from kgcli.data.shards.records import Text
from kgcli.data.shards.scan import scan_tar
from kgcli.data.shards.write import Row, write_shard
from kgcli.data.sources import open_source
from kgcli.data.where import parse_condition
from kgcli.errors import UsageError
from kgcli.recipe import DataConfig, FilterConfig

pytest.importorskip("pyarrow")
LONG = "an address of a photo in a museum of natural history, " * 3


pytestmark = pytest.mark.usefixtures("own_cache")


def write(path, *cells):
    """Write a tar of captioned images, each with the columns of its cells."""
    groups = {}
    for number, own in enumerate(cells):
        told = {"caption": f"{path.stem}{number}", "status": "success", **own}
        groups[f"{path.stem}{number}"] = {"jpg": encoded(solid(number)), "json": json.dumps(told).encode()}
    return write_tar(path, groups)


def taken(path, *where):
    """The captions of the rows that a source takes."""
    source = {"kind": "shards", "path": str(path), "shuffle": False, "filters": {"where": list(where)}}
    found = open_source(DataConfig.model_validate({"sources": [source], "batch_size": 4}), 64, "generate")
    return [found.read(row).caption for row in range(found.num_rows)]


def imported(path, *where):
    """The captions of the rows that an import takes."""
    options, found = ImportOptions(where=tuple(map(parse_condition, where))), []
    for item in find_importer("img2dataset").items(str(path), options):
        try:
            found += [record.words for record, _ in item.read()]
        except Skipped:
            continue
    return found


def test_a_column_may_be_in_some_of_the_shards_alone(tmp_path):
    write(tmp_path / "a.tar", {"width": 3}, {"width": 3})
    write(tmp_path / "b.tar", {"score": 0.5}, {"score": 0.1})
    assert taken(tmp_path, "score >= 0.3") == ["b0"]
    with pytest.raises(UsageError, match=r"a\.tar, like all after it, has no column scor; did you mean score"):
        taken(tmp_path, "scor >= 0.3")
    assert taken(tmp_path, "score >= 0.3") == ["b0"]


@pytest.mark.parametrize("long", [LONG, "x" * (MAX_CELL + 1)])
def test_texts_of_any_length_are_compared_as_an_import_compares_them(tmp_path, long):
    write(tmp_path / "a.tar", {"license": "by"}, {"license": long}, {"license": long + "!"}, {"license": ["by"]}, {})
    wanted = {"!= by": ["a1", "a2"], "== by": ["a0"], f'== "{long}"': ["a1"], f'!= "{long}"': ["a0", "a2"]}
    for condition, captions in wanted.items():
        assert taken(tmp_path, f"license {condition}") == imported(tmp_path, f"license {condition}") == captions


def test_what_the_index_keeps_of_a_row_is_bounded(tmp_path):
    told = {f"column {number}": LONG * 100 for number in range(10**4)} | {"x" * 10**6: 1, "large": 10**4000}
    kept = json.loads(told_text(told))
    assert len(kept) == MAX_COLUMNS and len(json.dumps(kept)) < 200 * MAX_COLUMNS
    write(tmp_path / "a.tar", told | {"score": 1})
    (row,) = scan_tar(str(tmp_path / "a.tar")).table.to_pylist()
    assert len(row["told"]) < 200 * MAX_COLUMNS
    assert told_text({"n": 2**63, "b": True, "large": 2**65}) == '{"n": 9223372036854775808, "b": true, "large": null}'


def test_a_misspelt_column_is_told_before_shards_are_scanned_and_refused_after(tmp_path, monkeypatch, caplog):
    write(tmp_path / "a.tar", *({"score": 1, "width": 3} for _ in range(3)))
    write(tmp_path / "b.tar", {"score": 1})
    scans = []
    monkeypatch.setattr(index, "scan_tar", lambda place: scans.append(list(caplog.messages)) or scan_tar(place))
    with pytest.raises(UsageError, match=r"a\.tar, like all after it, has no column scor; did you mean score"):
        taken(tmp_path, "scor >= 0.3")
    told = r"a\.tar, like all after it, in its first 100 rows has no column scor; did you mean score\?; it is refused"
    assert len(scans) == 2 and all(re.search(told, messages[0]) for messages in scans)


@pytest.mark.parametrize("is_scanned", [False, True])
def test_a_column_of_late_rows_is_taken_whatever_was_scanned_before(tmp_path, monkeypatch, caplog, is_scanned):
    monkeypatch.setattr(scan, "FIRST_ROWS", 2)
    write(tmp_path / "a.tar", {"score": 1}, {}, {"late": 1})
    if is_scanned:
        assert len(taken(tmp_path)) == 3
    assert taken(tmp_path, "late == 1") == ["a2"]
    assert len(caplog.messages) == (not is_scanned)


@pytest.mark.parametrize("is_scanned", [False, True])
def test_rows_that_cannot_be_read_say_nothing_of_columns(tmp_path, caplog, is_scanned):
    groups = {f"{number}": {"jpg": encoded(solid(number)), "json": b"{"} for number in range(3)}
    write_tar(tmp_path / "a.tar", groups)
    for filters_of in [FilterConfig()] * is_scanned + [FilterConfig(where=["score > 0"])]:
        open_index([str(tmp_path / "a.tar")], filters_of, tmp_path / "cache")
    assert not caplog.messages


def test_rows_that_can_be_read_but_have_no_columns_meet_no_condition(tmp_path):
    groups = {f"{number}": {"jpg": encoded(solid(number)), "txt": b"a cat"} for number in range(3)}
    write_tar(tmp_path / "a.tar", {**groups, "3": {"jpg": b"no image", "json": b"{"}})
    with pytest.raises(UsageError, match=r"a\.tar has no column score"):
        taken(tmp_path, "score > 0")


def test_columns_of_shards_are_looked_for_without_keeping_tables_or_asking_for_what_is_gone(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", {"score": 1})
    places, asked, read = [str(tmp_path / name) for name in ("gone.tar", "a.tar")], [], []
    stamp, read_all = storage.stamp, storage.read_all
    monkeypatch.setattr(storage, "stamp", lambda place: asked.append(place) or stamp(place))
    monkeypatch.setattr(storage, "read_all", lambda place, size: read.append(place) or read_all(place, size))
    open_index(places, FilterConfig(where=["score > 0"]), tmp_path / "cache")
    assert asked.count(places[0]) == asked.count(places[0].replace(".tar", ".parquet")) == 1
    write_shard(tmp_path / "own.tar", [Row("0", Text(text="a cat"), {})])
    own = [str(tmp_path / "own.tar"), *places]
    open_index(own, FilterConfig(where=["score > 0"]), tmp_path / "cache")
    assert read.count(own[0].replace(".tar", ".parquet")) == 2  # for its columns, and for its rows


def test_a_wrong_condition_is_refused_before_shards_are_read(tmp_path):
    write(tmp_path / "a.tar", {"score": 1})
    good, wrong = (
        {"kind": "shards", "path": str(tmp_path), "filters": {"where": [one]}} for one in ("score > 0", "score")
    )
    with pytest.raises(UsageError, match=f"^{filters.WHERE} is 'score'"):
        open_source(DataConfig.model_validate({"sources": [good, wrong], "batch_size": 4}), 64, "generate")
    assert not list((tmp_path / "cache").rglob("*.parquet"))

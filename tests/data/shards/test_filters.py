"""Conditions on the columns of other programs' shards: columns of all shards, and cells of any length."""

import json

import pytest
from foreign_shards import encoded, solid, write_tar

from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.table import find_importer
from kgcli.data.shards import filters, scan
from kgcli.data.shards.filters import MAX_CELL, MAX_COLUMNS, told_text
from kgcli.data.shards.scan import scan_tar
from kgcli.data.sources import open_source
from kgcli.data.where import parse_condition
from kgcli.errors import UsageError
from kgcli.recipe import DataConfig

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


def test_a_misspelt_column_is_refused_before_shards_are_scanned(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", *({"score": 1, "width": 3} for _ in range(3)))
    write(tmp_path / "b.tar", {"score": 1})
    with pytest.raises(UsageError, match=r"a\.tar, like all after it, has no column scor; did you mean score"):
        taken(tmp_path, "scor >= 0.3")
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    monkeypatch.setattr(scan, "FIRST_ROWS", 2)
    write(tmp_path / "c.tar", {}, {}, {"late": 1})
    with pytest.raises(UsageError, match="late"):
        taken(tmp_path, "late == 1")
    assert len(taken(tmp_path, "score == 1")) == 4  # which scans all of them: columns of any row are known then
    assert taken(tmp_path, "late == 1") == ["c2"]


def test_a_wrong_condition_is_refused_before_shards_are_read(tmp_path):
    write(tmp_path / "a.tar", {"score": 1})
    good, wrong = (
        {"kind": "shards", "path": str(tmp_path), "filters": {"where": [one]}} for one in ("score > 0", "score")
    )
    with pytest.raises(UsageError, match=f"^{filters.WHERE} is 'score'"):
        open_source(DataConfig.model_validate({"sources": [good, wrong], "batch_size": 4}), 64, "generate")
    assert not list((tmp_path / "cache").rglob("*.parquet"))

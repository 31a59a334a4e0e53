"""A row of a tar is the same to all that read it: training, checks, statistics, the contact sheet and imports."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from foreign_shards import encoded, pairs, solid, write_tar

from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.table import find_importer
from kgcli.data.looking.rows import read_rows
from kgcli.data.looking.sheet import write_sheet
from kgcli.data.looking.stats import stats_of
from kgcli.data.looking.validate import validate
from kgcli.data.shards import contents, tars
from kgcli.data.shards.contents import NoSample, read_contents
from kgcli.data.shards.records import MAX_RECORD_BYTES
from kgcli.data.shards.scan import scan_tar
from kgcli.data.shards.write import Row, write_shard
from kgcli.data.sources import open_source
from kgcli.errors import KgError, MissingError
from kgcli.recipe import DataConfig

pytest.importorskip("pyarrow")

SAMPLE, NO_SAMPLE, FAULT = "sample", "no sample", "fault"
JPG, PNG = encoded(solid(1)), encoded(solid(2), "png")


pytestmark = pytest.mark.usefixtures("own_cache")


def told(**values):
    return json.dumps(values).encode()


def huge_png():
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def compositional(mask, crop_on_white=None):
    entity = {"noun": "cat", "span": [2, 5], "crop": "0.png", "mask": "1.png", "crop_on_white": crop_on_white}
    files = {"json": told(kind="compositional", image="jpg", caption="a cat", entities=[entity])}
    return {**files, "jpg": JPG, "0.png": PNG, "1.png": encoded(mask.convert("L"), "png")}


ROWS = {
    "as img2dataset writes it": (
        {"jpg": JPG, "txt": b"a cat", "json": told(caption="a cat", status="success")},
        SAMPLE,
    ),
    "suffixes in capitals": ({"JPG": JPG, "TXT": b"a cat", "JSON": told(caption="a dog")}, SAMPLE),
    "the suffix jpeg": ({"jpeg": JPG, "txt": b"a cat"}, SAMPLE),
    "a PNG called jpg": ({"jpg": PNG, "txt": b"a cat"}, SAMPLE),
    "two images": ({"webp": b"no image", "png": PNG, "jpg": JPG, "txt": b"a cat"}, SAMPLE),
    "a caption in JSON": ({"jpg": JPG, "json": told(caption=" a cat ")}, SAMPLE),
    "a text in JSON": ({"jpg": JPG, "json": told(text="a cat")}, SAMPLE),
    "a TEXT in JSON": ({"jpg": JPG, "json": told(TEXT="a cat")}, SAMPLE),
    "an empty .txt and a caption": ({"jpg": JPG, "txt": b"\n", "json": told(caption="a cat")}, SAMPLE),
    "an empty caption": ({"jpg": JPG, "txt": b""}, SAMPLE),
    "an image alone": ({"jpg": JPG}, SAMPLE),
    "a caption that is no text": ({"jpg": JPG, "json": told(caption=["a cat"])}, SAMPLE),
    "a text alone": ({"txt": b"some\nwords"}, SAMPLE),
    "a text in JSON alone": ({"json": told(text="some words", url="http://x")}, SAMPLE),
    "a byte order mark": ({"jpg": JPG, "txt": "a cat".encode("utf-8-sig")}, SAMPLE),
    "a text in Latin-1": ({"jpg": JPG, "txt": "un caf\xe9".encode("latin-1")}, FAULT),
    "an unknown kind": ({"jpg": JPG, "txt": b"a cat", "json": told(kind="photo")}, SAMPLE),
    "a kind that is no text": ({"jpg": JPG, "txt": b"a cat", "json": told(kind=["pair"])}, SAMPLE),
    "a known kind of other fields": ({"jpg": JPG, "txt": b"a cat", "json": told(kind="pair")}, FAULT),
    "a list in JSON": ({"jpg": JPG, "txt": b"a cat", "json": b"[1]"}, SAMPLE),
    "NaN in JSON": ({"jpg": JPG, "txt": b"a cat", "json": b'{"similarity": NaN}'}, SAMPLE),
    "half of a JSON": ({"jpg": JPG, "txt": b"a cat", "json": b'{"caption": "a'}, FAULT),
    "half of a JSON alone": ({"json": b'{"kind": "text'}, FAULT),
    "a deep JSON": ({"jpg": JPG, "txt": b"a cat", "json": b"[" * 500 + b"]" * 500}, FAULT),
    "a large JSON": ({"jpg": JPG, "txt": b"a cat", "json": b"{}" + b" " * MAX_RECORD_BYTES}, FAULT),
    "a large text": ({"jpg": JPG, "txt": b"a" * (MAX_RECORD_BYTES + 1)}, FAULT),
    "a broken image": ({"jpg": b"no image", "txt": b"a cat"}, FAULT),
    "half of an image": ({"jpg": JPG[: len(JPG) // 2], "txt": b"a cat"}, FAULT),
    "an image that is too large": ({"png": huge_png(), "txt": b"a cat"}, FAULT),
    "a failed download": ({"json": told(url="http://x", caption="a cat", status="failed_to_download")}, NO_SAMPLE),
    "a failed download with .txt": ({"txt": b"a cat", "json": told(status="failed", error_message="404")}, NO_SAMPLE),
    "a file of another kind": ({"cls": b"3"}, NO_SAMPLE),
    "a text of our own": ({"json": told(kind="text", text="words")}, SAMPLE),
    "a pair of our own": ({"json": told(kind="pair", image="jpg", caption="a cat"), "jpg": JPG}, SAMPLE),
    "a pair without its image": ({"json": told(kind="pair", image="jpg", caption="a cat"), "png": PNG}, FAULT),
    "a pair whose image is in capitals": ({"json": told(kind="pair", image="jpg", caption="x"), "JPG": JPG}, FAULT),
    "a prompt that does not parse": ({"json": told(kind="prompt", prompt="a <image:0.png"), "0.png": PNG}, FAULT),
    "a prompt": (
        {"json": told(kind="prompt", prompt="a <image:0.png>", target="jpg"), "0.png": PNG, "jpg": JPG},
        SAMPLE,
    ),
    "an edit with a broken mask": (
        {
            "json": told(kind="edit", before="0.png", after="jpg", instruction="x", masks=["1.png"]),
            "0.png": PNG,
            "jpg": JPG,
            "1.png": b"no",
        },
        FAULT,
    ),
    "a mask of another size": (compositional(solid(3, (5, 5))), FAULT),
    "an empty mask": (compositional(solid(3).point(lambda value: 0)), FAULT),
    "a mask that nothing needs": (compositional(solid(3, (5, 5)), "0.png"), SAMPLE),
    "a mask": (compositional(solid(3).point(lambda value: 255)), SAMPLE),
}
ODD = "000000001"


@pytest.fixture(params=ROWS)
def odd_row(request, tmp_path):
    """A tar with a row between two good ones, and what the row is."""
    files, expected = ROWS[request.param]
    before, after = pairs(0, 1), pairs(2, 1)
    return write_tar(tmp_path / "a.tar", {**before, ODD: files, **after}), expected


def source_of(tar, use="generate", **data):
    given = {"sources": [{"kind": "shards", "path": str(tar)}], "batch_size": 4, **data}
    return open_source(DataConfig.model_validate(given), 64, use)


def trained_on(tar, use="generate"):
    """What training makes of the rows, by key: a sample, or the fault that it stops at."""
    source, found = source_of(tar, use), {}
    for row in range(source.num_rows):
        key = source.place_of(row)[1]
        try:
            found[key] = source.read(row)
        except MissingError as error:
            found[key] = error
    return found


def outcome(found, key):
    if key not in found:
        return NO_SAMPLE
    return FAULT if isinstance(found[key], Exception) else SAMPLE


def test_all_that_read_a_row_agree_on_it(odd_row):
    tar, expected = odd_row
    by_use = {use: trained_on(tar, use) for use in ("read", "match", "generate")}
    assert {use: outcome(found, ODD) for use, found in by_use.items()} == dict.fromkeys(by_use, expected)
    checked = validate(tar)
    assert [text.split(":")[0] for _, text in checked.faults] == ([ODD] if expected == FAULT else [])
    assert checked.left_out == (expected == NO_SAMPLE)
    assert checked.rows == {"a.tar": 2 + (expected != NO_SAMPLE)}
    page = write_sheet(tar, num=9)
    assert page.count("<article") == 3 and page.count('class="no sample"') == (expected == NO_SAMPLE)
    items = list(find_importer("img2dataset").items(str(tar), ImportOptions()))
    assert len(items) == 3 and [import_of(item) for item in items] == [SAMPLE, imported(tar, expected), SAMPLE]


def imported(tar, expected):
    """What an import makes of the odd row: an image without a caption is left out, as it is none to train on."""
    kinds = {line["key"]: line["kind"] for line in scan_tar(str(tar)).table.to_pylist()}
    return NO_SAMPLE if kinds.get(ODD) == contents.IMAGE else expected


def import_of(item):
    try:
        return SAMPLE if list(item.read()) else None
    except Skipped as rule:
        assert str(rule) in ("it was not downloaded", "it holds no image and no text", "it has no caption")
        return NO_SAMPLE
    except KgError as error:
        assert ODD in str(error) and "\n" not in str(error)
        return FAULT


def test_a_quick_look_takes_a_row_as_training_does_but_for_its_pixels(odd_row):
    tar, expected = odd_row
    seen = {row.key: row for row in read_rows(tar)}[ODD]
    kinds = {line["key"]: line["kind"] for line in scan_tar(str(tar)).table.to_pylist()}
    numbers = stats_of(tar).as_dict()
    assert (ODD not in kinds) == bool(seen.left_out) == (expected == NO_SAMPLE) == bool(numbers["no_samples"])
    assert (kinds.get(ODD) == "fault") == bool(seen.fault) == bool(numbers["faults"])
    assert seen.fault == "" or expected == FAULT
    assert not validate(tar, images=False).faults or seen.fault


def test_a_row_is_imported_as_training_shows_it(odd_row, tmp_path):
    tar, expected = odd_row
    if imported(tar, expected) != SAMPLE:
        return
    _, item, _ = find_importer("img2dataset").items(str(tar), ImportOptions())
    ((record, images),) = item.read()
    write_shard(tmp_path / "own-00000.tar", [Row(ODD, record, images)])
    was, now = trained_on(tar)[ODD], trained_on(tmp_path / "own-00000.tar")[ODD]
    assert (was.fragments, was.caption) == (now.fragments, now.caption)
    assert [np.asarray(image).tobytes() for image in was.images] == [np.asarray(one).tobytes() for one in now.images]
    assert (was.target is None) == (now.target is None)
    if was.target is not None:
        assert np.array_equal(np.asarray(was.render(8).image), np.asarray(now.render(8).image))


@pytest.mark.parametrize("name", ["an empty caption", "an image alone", "a caption that is no text"])
def test_an_image_without_a_caption_is_not_imported(tmp_path, name):
    tar = write_tar(tmp_path / "a.tar", {ODD: ROWS[name][0]})
    assert scan_tar(str(tar)).table.column("kind").to_pylist() == [contents.IMAGE]
    (item,) = find_importer("img2dataset").items(str(tar), ImportOptions())
    with pytest.raises(Skipped, match="^it has no caption$"):
        list(item.read())


def test_faults_are_skipped_and_no_row_is_dropped_in_silence(odd_row):
    tar, expected = odd_row
    source = source_of(tar, faults="skip")
    faults = {fault.row for number in range(20) for fault in source.sample(number).faults}
    assert faults == ({ODD} if expected == FAULT else set())
    for number in range(20):
        if (fragments := source.fragments(number)) is not None and not source.sample(number).faults:
            assert fragments == source.sample(number).fragments


def test_captions_are_those_of_the_row():
    found = {name: read_contents({n: len(d) for n, d in files.items()}, files.__getitem__).record.words
             for name, (files, expected) in ROWS.items() if expected == SAMPLE and "own" not in name}  # fmt: skip
    assert found["suffixes in capitals"] == found["a byte order mark"] == found["a TEXT in JSON"] == "a cat"
    assert found["an empty .txt and a caption"] == found["a caption in JSON"] == "a cat"
    assert found["an image alone"] == "" and found["a text alone"] == "some words"


def test_only_texts_are_read_to_tell_what_a_row_is():
    def read(name):
        assert contents.is_text(name)
        return {"txt": b"a cat", "json": b"{}"}[name]

    assert read_contents({"jpg": 10**12, "txt": 5, "json": 2}, read).record.caption == "a cat"
    with pytest.raises(NoSample, match="it holds no image"):
        read_contents({"jpg.tmp": 3}, read)


def test_a_file_that_is_too_large_is_a_fault_of_its_row_alone(tmp_path, monkeypatch):
    large = {"jpg": JPG, "txt": b"a" * 20_000}
    tar = write_tar(tmp_path / "a.tar", {**pairs(0, 1), ODD: large, **pairs(2, 1)})
    for name, limit in (("MAX_BYTES", 10_000), ("MAX_ROW_BYTES", 15_000)):
        with monkeypatch.context() as patch:
            patch.setattr(tars, name, limit)
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
            found = trained_on(tar)
            assert len(found) == 3 and isinstance(found[ODD], MissingError) and "the limit is" in str(found[ODD])
            ((_, text),) = validate(tar).faults
            assert text.startswith(ODD) and "the limit is" in text
            items = list(find_importer("img2dataset").items(str(tar), ImportOptions()))
            assert [import_of(item) for item in items] == [SAMPLE, FAULT, SAMPLE]


def test_a_row_before_a_cut_is_trusted_by_none(tmp_path):
    tar = write_tar(tmp_path / "a.tar", pairs(0, 3))
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1]  # the caption of the last row
    tar.write_bytes(tar.read_bytes()[: last.offset])
    assert [row.key for row in read_rows(tar) if row.places] == ["000000000", "000000001"]
    scanned = scan_tar(str(tar))
    assert scanned.table.num_rows == 2 and "its end is missing" in scanned.fault


def test_the_last_of_two_files_of_one_name_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("a.jpg", JPG), ("a.txt", b"old"), ("a.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert trained_on(tmp_path / "a.tar")["a"].caption == "a cat"
    (row,) = read_rows(tmp_path / "a.tar")
    assert row.record.caption == "a cat"
    assert not validate(tmp_path / "a.tar").faults


def test_a_filter_of_kinds_drops_no_fault(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {**pairs(0, 1), ODD: {"json": b"{", "jpg": JPG, "txt": b"x"}})
    given = {"sources": [{"kind": "shards", "path": str(tar), "filters": {"kinds": ["pair"]}}], "batch_size": 4}
    assert open_source(DataConfig.model_validate(given), 64, "generate").num_rows == 2


def test_a_source_without_a_good_row_opens_and_names_its_fault(tmp_path):
    source = source_of(write_tar(tmp_path / "a.tar", {ODD: {"json": b"{"}}))
    with pytest.raises(MissingError, match=f"{ODD}: its JSON is damaged"):
        source.sample(0)


def test_a_name_that_is_not_utf8_is_read_by_all(tmp_path):
    odd = {"jpg": JPG, "txt": b"a caf\xc3\xa9"}
    tar = write_tar(tmp_path / "a.tar", {**pairs(0, 1), "caf\udce9": odd, "b": {"jpg": JPG, "t\udce9": b"x"}})
    assert b"caf\xe9.jpg" in tar.read_bytes()
    found = trained_on(tar)
    assert [*found] == ["000000000", r"caf\udce9", "b"] and not any(isinstance(one, KgError) for one in found.values())
    assert source_of(tar, faults="skip").num_rows == 3
    assert not validate(tar).faults and stats_of(tar).as_dict()["rows"] == 3
    assert write_sheet(tar, num=9).count("<article") == 3
    items = list(find_importer("img2dataset").items(str(tar), ImportOptions()))
    assert [import_of(item) for item in items] == [SAMPLE, SAMPLE, NO_SAMPLE]  # the last has no caption

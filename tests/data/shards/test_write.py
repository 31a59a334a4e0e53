import io
import json
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from pydantic import ValidationError

from kgcli.data.images import decode_image
from kgcli.data.shards.layout import read_dataset
from kgcli.data.shards.records import (
    Compositional,
    Edit,
    Entity,
    Interleaved,
    Pair,
    Shown,
    Text,
    Written,
    dump_record,
    record_of,
)
from kgcli.data.shards.write import Row, ShardWriter, as_member, encode_image, read_notes, row_hash, write_dataset
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.files import sha256

RNG = np.random.default_rng(0)
ENTITY = Entity(noun="cat", span=(2, 5), crop="0.png", crop_on_white="1.png")
RECORDS = [
    Text(text="a cat \u2603"),
    Text(text="A cat", caption="a cat"),
    Pair(image="jpg", caption="a cat", origin="a.csv line 3"),
    Interleaved(fragments=("A cat. ", Shown(image="0.png"), " It sleeps.", Shown(image="1.png"))),
    Compositional(image="png", caption="a cat on the beach", entities=(ENTITY,)),
    Edit(before="0.png", after="png", instruction="make it snow", masks=("1.png",)),
    Written(prompt=r"a <image:0.png|fit=pad> \< <image:1.png>", target="png", caption="a cat"),
]


def picture(side=8):
    return Image.fromarray(RNG.integers(0, 255, (side, side, 3), dtype=np.uint8))


def row(key, record):
    return Row(key, record, {name: encode_image(picture(), name[-3:]) for name in record.images})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_reads_back_equal(record):
    assert record_of(json.loads(dump_record(record)), "x") == record


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "pair", "image": "../x.jpg", "caption": "a"},
        {"kind": "pair", "image": "jpg", "caption": "a", "more": 1},
        {"kind": "picture", "image": "jpg"},
        {"kind": "prompt", "prompt": "a <image:/etc/passwd>"},
        {"kind": "prompt", "prompt": "a <image:0.png|weight=0.5>"},
        {"kind": "prompt", "prompt": "a <image:0.png"},
        {"kind": "compositional", "image": "jpg", "caption": "cat", "entities": []},
        {
            "kind": "compositional",
            "image": "jpg",
            "caption": "cat",
            "entities": [{"noun": "cat", "span": [1, 9], "crop": "0.png", "mask": "1.png"}],
        },
        ["no record"],
    ],
)
def test_a_wrong_record_is_refused_in_one_line(value):
    with pytest.raises(MissingError, match="^here") as caught:
        record_of(value, "here")
    assert "\n" not in str(caught.value)


def test_an_entity_needs_its_image_on_white_or_a_mask():
    with pytest.raises(ValidationError, match="neither"):
        Entity(noun="cat", span=(0, 3), crop="0.png")


def test_the_same_rows_give_the_same_bytes_and_the_index_finds_every_member(tmp_path):
    rows = [row(f"{number:04d}", record) for number, record in enumerate(RECORDS)]
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, "mixed", max_rows=3, notes={"of": 1}) as writer:
            for one in rows:
                writer.add(one)
        write_dataset(tmp_path / name, writer.shards, writer.kinds, made_by={"command": "test"})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir()) and len(names) == 3 * 2 + 2
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names
        if name != "README.md"  # its title is the folder's name
    )
    dataset = read_dataset(tmp_path / "a")
    assert [shard.rows for shard in dataset.shards] == [3, 3, 1] and sum(dataset.kinds.values()) == 7
    seen = []
    for shard in dataset.shards:
        path = tmp_path / "a" / shard.name
        assert shard.sha256 == sha256(path) == read_notes(path)["sha256"]
        data = path.read_bytes()
        for line in pyarrow.parquet.read_table(path.with_suffix(".parquet")).to_pylist():
            members = {one["name"]: data[one["offset"] : one["offset"] + one["size"]] for one in line["members"]}
            record = record_of(json.loads(members["json"]), line["key"])
            assert record.kind == line["kind"] and set(members) == {"json", *record.images}
            assert line["sha256"] == row_hash(members)
            if record.main_image:
                assert decode_image(members[record.main_image]).size == (line["width"], line["height"]) == (8, 8)
            seen.append(record)
    assert seen == RECORDS


def test_png_members_hold_every_pixel(tmp_path):
    image = picture(33)
    one = Row("a", Pair(image="png", caption="noise"), {"png": encode_image(image)})
    with ShardWriter(tmp_path, "noise") as writer:
        writer.add(one)
    with tarfile.open(tmp_path / "noise-00000.tar") as tar:
        assert tar.getnames() == ["a.json", "a.png"]
        content = tar.extractfile("a.png").read()
    assert np.array_equal(np.asarray(decode_image(content)), np.asarray(image))


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    good, lacking = row("a", RECORDS[2]), Row("b", RECORDS[2], {})
    with pytest.raises(UsageError, match="names the image jpg"), ShardWriter(tmp_path, "x") as writer:
        writer.add(good)
        writer.add(lacking)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="twice"), ShardWriter(tmp_path, "x") as writer:
        writer.add(good)
        writer.add(good)
    with pytest.raises(UsageError, match="cannot be a key"), ShardWriter(tmp_path, "x") as writer:
        writer.add(row("a.b", RECORDS[0]))
    with pytest.raises(UsageError, match="cannot name shards"):
        ShardWriter(tmp_path, "a/b")
    assert list(tmp_path.iterdir()) == []


def test_image_files_are_kept_as_they_are_or_become_png():
    jpeg, buffer = encode_image(picture(), "jpg"), io.BytesIO()
    picture().save(buffer, "BMP")
    assert as_member(jpeg, "a.jpg") == ("jpg", jpeg)
    suffix, data = as_member(buffer.getvalue(), "a.bmp")
    assert suffix == "png" and decode_image(data).size == (8, 8)
    with pytest.raises(ImageError, match="a.txt is not an image"):
        as_member(b"no image", "a.txt")

import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import zlib

import foreign
import numpy as np
import pytest
from PIL import Image

from kgcli.data.looking.rows import read_rows
from kgcli.data.looking.sheet import write_sheet
from kgcli.data.looking.stats import stats_of
from kgcli.data.looking.validate import validate
from kgcli.data.shards.records import Compositional, Edit, Entity, Interleaved, Pair, Shown, Text, Written
from kgcli.data.shards.scan import scan_tar
from kgcli.data.shards.write import Row, ShardWriter, encode_image, write_dataset

HOSTILE = 'a <script>alert(1)</script> & " cat'


def picture(seed, size=(24, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def rows():
    entity = Entity(noun="cat", span=(2, 5), crop="0.png", crop_on_white="1.png", mask="2.png")
    records = [
        Text(text=HOSTILE),
        Pair(image="png", caption=HOSTILE, origin="<b>x</b>"),
        Interleaved(fragments=("A cat. ", Shown(image="0.png"), " <i>It</i> sleeps.")),
        Compositional(image="png", caption="a cat & a mat", entities=(entity,)),
        Edit(before="0.png", after="png", instruction="make it snow"),
        Written(prompt=r"a <image:0.png> \<b>", target="png"),
    ]
    for number, record in enumerate(records):
        yield Row(f"{number:03d}", record, {name: encode_image(picture(number)) for name in record.images})


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    with ShardWriter(folder, "mixed", max_rows=4) as writer:
        for row in rows():
            writer.add(row)
    write_dataset(folder, writer.shards, writer.kinds, made_by={})
    return folder


def test_what_was_written_is_valid(shards):
    found = validate(shards)
    assert not found.faults and found.indexed == 2 and sum(found.rows.values()) == 6
    assert str(found) == "6 rows in 2 shards, 2 of them with an index: no faults"


def test_every_kind_of_damage_is_named(shards, tmp_path):
    first, second = shards / "mixed-00000.tar", shards / "mixed-00001.tar"

    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(shards, folder)
        change(folder)
        return str(validate(folder))

    def flip(folder):
        data = bytearray((folder / first.name).read_bytes())
        place = data.index(b"cat & a mat")
        data[place] ^= 1
        (folder / first.name).write_bytes(data)

    changed = damaged("flip", flip)
    assert "its sha256 is" in changed and "003: its content has changed" in changed
    cut = damaged("cut", lambda folder: (folder / second.name).write_bytes(second.read_bytes()[:1500]))
    assert "the tar is damaged" in cut and "is in the index alone" in cut and "not the 2 of dataset.json" in cut
    assert "lists it, but it is not there" in damaged("gone", lambda folder: (folder / second.name).unlink())
    swapped = damaged("swap", lambda folder: shutil.copy(second, folder / first.name))
    assert "004: it is not in the index" in swapped and "004 is a key of mixed-00000.tar too" in swapped
    extra = damaged("extra", lambda folder: shutil.copy(second, folder / "more.tar"))
    assert "more.tar: it is not listed in dataset.json" in extra
    bad = damaged("json", lambda folder: (folder / "dataset.json").write_text('{"format": "other"}'))
    assert "dataset.json" in bad and "is not a list of shards" in bad
    broken = damaged("parquet", lambda folder: (folder / "mixed-00000.parquet").write_bytes(b"no"))
    assert "mixed-00000.parquet: it cannot be read" in broken


def test_broken_images_are_named_unless_quick(tmp_path):
    good = Row("a", Pair(image="png", caption="x"), {"png": encode_image(picture(1, (300, 300)))})
    with ShardWriter(tmp_path, "x") as writer:
        writer.add(good)
    path = tmp_path / "x-00000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 40
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    assert any("damaged or cut short" in text for _, text in validate(path).faults)
    assert not any("damaged or cut short" in text for _, text in validate(path, images=False).faults)


def test_shards_of_other_programs(tmp_path):
    foreign.write_img2dataset(tmp_path / "laion", num_shards=1)
    found = validate(tmp_path / "laion")
    assert found.rows == {"00000.tar": 2} and found.indexed == 0 and not found.faults and found.left_out == 1
    assert str(found).endswith("0 of them with an index, and 1 group of files that is not a sample: no faults")
    stats = stats_of(tmp_path / "laion").as_dict()
    assert stats["kinds"] == {"pair": 2} and stats["faults"] == 0 and stats["no_samples"] == 1
    page = write_sheet(tmp_path / "laion", num=5)
    assert "caption 1" in page and "it was not downloaded: HTTP Error 404" in page


def test_samples_in_folders_of_their_own_stay_apart(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(2):
            foreign.add_member(tar, f"./000{number}/image.jpg", foreign.image_bytes(number))
            foreign.add_member(tar, f"./000{number}/image.txt", f"caption {number}".encode())
        foreign.add_member(tar, "README", b"of no sample")
    found = list(read_rows(tmp_path / "x.tar"))
    assert [(row.key, row.record.caption) for row in found] == [
        ("0000/image", "caption 0"),
        ("0001/image", "caption 1"),
    ]
    assert [row["key"] for row in scan_tar(str(tmp_path / "x.tar")).table.to_pylist()] == [row.key for row in found]


def test_statistics(shards):
    found = stats_of(shards)
    numbers = found.as_dict()
    assert numbers["rows"] == 6 and numbers["nouns"] == {"cat": 1} and numbers["repeated_images"] == 0
    assert numbers["quantiles"]["width of the image, pixels"]["50"] == 24
    assert "6 rows (1 compositional" in str(found) and json.dumps(numbers)


def test_an_image_whose_header_is_too_large_leaves_the_statistics_of_others(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    huge += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("0.png", huge),
            ("0.txt", b"huge"),
            ("1.png", encode_image(picture(1))),
            ("1.txt", b"a cat"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    numbers = stats_of(tmp_path).as_dict()
    assert numbers["rows"] == 2 and numbers["quantiles"]["width of the image, pixels"]["0"] == 24


def test_a_sheet_escapes_everything_and_asks_nothing_of_the_network(shards):
    page = write_sheet(shards, num=100)
    assert "<script" not in page and "&lt;script&gt;" in page and "<i>It" not in page and "<b>" not in page
    assert "a <mark>cat</mark> &amp; a mat" in page and "cat, on white, 24 x 16" in page and "cat, mask" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:image/webp;base64,)""", page)
    assert page.count("<article") == 6
    assert write_sheet(shards, num=2, seed=1).count("<article") == 2 and "2 of 6 rows" in write_sheet(
        shards, num=2, seed=1
    )
    assert write_sheet(shards, num=2, seed=1) == write_sheet(shards, num=2, seed=1)


def test_the_commands(kg, shards):
    assert kg("data", "validate", shards).code == 0
    assert kg("data", "stats", shards, "--json").code == 0
    ran = kg("data", "show", shards, "-o", "a.html")
    assert ran.code == 0 and ran.out == "a.html\n"
    assert kg("data", "show", shards, "-o", "a.html").code == 2
    (shards / "mixed-00001.tar").unlink()
    ran = kg("data", "validate", shards)
    assert ran.code == 1 and "1 fault in 1 file" in ran.out
    assert kg("data", "stats", "nowhere").code == 3


def test_rows_read_back_as_they_were_written(shards):
    found = [row for shard in sorted(shards.glob("*.tar")) for row in read_rows(shard)]
    assert [(row.key, row.record, row.images) for row in found] == [
        (row.key, row.record, dict(row.images)) for row in rows()
    ]


@pytest.mark.browser
def test_a_browser_shows_the_images_and_runs_nothing_of_the_data(tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    caption = "<script>document.body.remove()</script><img src=x onerror=document.body.remove()>"
    image = encode_image(Image.new("RGB", (200, 200), (250, 10, 200)))
    with ShardWriter(tmp_path / "shards", "x") as writer:
        writer.add(Row("a", Pair(image="png", caption=caption), {"png": image}))
    (tmp_path / "sheet.html").write_text(write_sheet(tmp_path / "shards", num=1), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,600"]
    own = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"]
    page = (tmp_path / "sheet.html").as_uri()
    subprocess.run([chromium, *flags, *own, page], check=True, capture_output=True, timeout=120)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert (np.abs(shot - (250, 10, 200)).max(-1) < 12).sum() > 200 * 190

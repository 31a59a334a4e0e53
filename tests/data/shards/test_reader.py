"""Laws of shards as a source: the number is the only state, each row n or n + 1 times, bad rows shift nothing."""

import json
import os
import shutil
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from foreign_shards import encoded, numbers_of, pairs, solid, write_shards, write_tar
from range_server import running, served

from kgcli.data.batch import Collator
from kgcli.data.loader import Batches, load_batches
from kgcli.data.pool import PoolImages
from kgcli.data.shards import web
from kgcli.data.shards.index import open_index
from kgcli.data.shards.layout import index_path
from kgcli.data.shards.order import WindowOrder
from kgcli.data.shards.records import Compositional, Edit, Entity, Interleaved, Pair, Shown, Text, Written
from kgcli.data.shards.storage import list_shards, read_range
from kgcli.data.shards.write import Row, encode_image, write_shard
from kgcli.data.sources import open_source
from kgcli.errors import MissingError, PassingError, UsageError
from kgcli.recipe import DataConfig, FilterConfig

pytest.importorskip("pyarrow")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "laion")


def shard_source(path, use="match", settings=(), **own):
    data = {"sources": [{"kind": "shards", "path": str(path), **own}], "batch_size": 4, **dict(settings)}
    return open_source(DataConfig.model_validate(data), 64, use)


def skipping(path, **own):
    return shard_source(path, settings={"faults": "skip"}, **own)


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("window", [1, 2, 3, 16, None])
def test_every_epoch_holds_every_row_once(window):
    order = WindowOrder([5, 0, 3, 7, 0, 4], window=window, seed=(3, 1))
    epochs = [tuple(order.row(number) for number in range(first, first + 19)) for first in range(0, 19 * 8, 19)]
    assert all(sorted(epoch) == list(range(19)) for epoch in epochs)
    assert len(set(epochs)) == (1 if window is None else 8)
    assert order.row(10**12) == WindowOrder([5, 0, 3, 7, 0, 4], window=window, seed=(3, 1)).row(10**12)


def test_only_a_window_of_shards_is_read_at_a_time():
    order = WindowOrder([100] * 50, window=4, seed=(0,))
    for first in range(0, 4800, 400):  # the last window of an epoch is smaller
        assert len({order.shard_of(order.row(number)) for number in range(first, first + 400)}) == 4


# ---------------------------------------------------------------- ranks, workers, resuming


def collator():
    return Collator(frozenset({"targets"}), image_size=8, vision_size=8)


def stream(source, first, steps, rank=0, num_ranks=1, workers=0):
    batches = Batches(source, collator(), batch_size=4, rank=rank, num_ranks=num_ranks)
    return list(load_batches(batches, first, steps, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than a small machine has cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_row_is_seen_n_or_n_plus_1_times_by_any_number_of_ranks_and_workers(shards, workers):
    steps = 21  # 84 samples of 19 rows
    shown = {}
    for num_ranks in (1, 2, 4):
        ranks = [stream(shard_source(shards), 0, steps, rank, num_ranks, workers) for rank in range(num_ranks)]
        numbers = [number for batches in ranks for batch in batches for number in batch.numbers]
        assert sorted(numbers) == list(range(4 * steps))
        pixels = [image.numpy().tobytes() for batches in ranks for batch in batches for image in batch.targets]
        shown[num_ranks] = dict(zip(numbers, pixels, strict=True))
        assert len(set(pixels)) == 19 and set(Counter(pixels).values()) == {4, 5}
    assert shown[1] == shown[2] == shown[4]


def test_a_run_resumes_at_any_step_bit_for_bit(shards):
    source = shard_source(shards, window=2)
    through = stream(source, 0, 20)
    for first in np.random.default_rng(0).integers(0, 20, 6):
        rest = stream(shard_source(shards, window=2), int(first), 20, workers=int(first) % 2)
        assert all((one.targets == other.targets).all() for one, other in zip(rest, through[first:], strict=True))


def test_decoded_samples_do_not_wait_for_their_batch(shards):
    source, made, most = shard_source(shards), [], 0
    read = source.sample

    def counted(number):
        nonlocal most
        most = max(most, sum(one() is not None for one in made))
        found = read(number)
        made.append(weakref.ref(found))
        return found

    source.sample = counted
    assert len(Batches(source, collator(), batch_size=16)[0].targets) == 16
    assert len(made) == 16 and most <= 1


def test_sources_have_their_exact_fractions(shards, tmp_path):
    write_tar(tmp_path / "more.tar", pairs(100, 11))
    data = {
        "sources": [
            {"kind": "shards", "path": str(shards), "weight": 2},
            {"kind": "shards", "path": str(tmp_path / "more.tar"), "weight": 1},
        ],
        "batch_size": 4,
    }
    source = open_source(DataConfig.model_validate(data), 64, "generate")
    numbers = numbers_of(source.sample(number) for number in range(1002))
    assert sum(number >= 100 for number in numbers) == 334
    counts = Counter(numbers)
    for own in (range(19), range(100, 111)):
        assert max(counts[one] for one in own) - min(counts[one] for one in own) <= 1
    by_batch = open_source(DataConfig.model_validate({**data, "mix": "per_batch"}), 64, "generate")
    steps = [numbers_of(by_batch.sample(number) for number in range(4 * step, 4 * step + 4)) for step in range(300)]
    assert all(len({number >= 100 for number in step}) == 1 for step in steps)
    counts = Counter(number for step in steps for number in step)
    assert max(counts[one] for one in range(19)) - min(counts[one] for one in range(19)) <= 1


# ---------------------------------------------------------------- what shards are found, and what is kept


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{00000..00002}.tar", ["00000", "00001", "00002"]),
        ("0000{3,1}.tar", ["00003", "00001"]),
        ("{00000..00001,x}.tar", ["00000..00001", "x"]),
        ("0000[13].tar", ["00001", "00003"]),
        ("*.tar", ["00000", "00001", "00002", "00003"]),
        ("{8..10}.tar", ["8", "9", "10"]),
        ("", ["00000", "00001", "00002", "00003"]),
    ],
)
def test_shards_are_listed_by_braces_globs_and_folders(shards, pattern, names):
    found = list_shards(f"{shards}/{pattern}")
    assert [os.path.basename(one) for one in found] == [f"{name}.tar" for name in names]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("{3..1}.tar", UsageError, "does not count upwards"),
        ("{0..9999999}.tar", UsageError, "or too far"),
        ("{0..999}{0..9999}.tar", UsageError, "more than 1,000,000 shards"),
        ("*.tgz", MissingError, "there is no shard"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(shards, place, error, message):
    with pytest.raises(error, match=message):
        list_shards(f"{shards}/{place}")


def test_a_url_of_any_file_system_is_read(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/laion/{path.name}", path.read_bytes())
    source = shard_source("memory://laion/*.tar")
    assert sorted(numbers_of(source.read(row) for row in range(19))) == list(range(19))
    assert list_shards("memory://laion/{00000..00001}.tar") == [f"memory://laion/{n:05d}.tar" for n in range(2)]


def test_filters_drop_rows_when_the_index_is_made(tmp_path):
    rows = []
    for number in range(8):
        image = solid(number, (10 + 10 * number, 40))
        rows.append(
            Row(f"{number:03d}", Pair(image="png", caption=f"{number} thing"), {"png": encode_image(image)},
                flags=("unsafe",) if number == 6 else (), num_tokens=3 * number)
        )  # fmt: skip
    rows.append(Row("text", Text(text="9 words")))
    write_shard(tmp_path / "a-00000.tar", rows)

    def kept(**filters):
        source = shard_source(tmp_path / "a-00000.tar", filters=filters, use="generate")
        return sorted(numbers_of(source.read(row) for row in range(source.num_rows)))

    assert kept() == [*range(8), 9]
    assert kept(min_side=30) == [2, 3, 4, 5, 6, 7, 9]
    assert kept(max_aspect=1.5) == [2, 3, 4, 5, 9]
    assert kept(without_flags=["unsafe", "x"]) == [0, 1, 2, 3, 4, 5, 7, 9]
    assert kept(max_tokens=6) == [0, 1, 2, 9]
    assert kept(kinds=["text"]) == [9]
    with pytest.raises(MissingError, match=r"holds no row; 9 were dropped"):
        kept(kinds=["edit"])


def test_the_index_is_made_once_and_anew_for_another_content(shards, tmp_path):
    places = list_shards(str(shards))
    first = open_index(places, FilterConfig())
    made = first.path.stat().st_mtime_ns
    scans = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")}
    assert open_index(places, FilterConfig()).path.stat().st_mtime_ns == made and len(scans) == 4
    write_tar(shards / "00001.tar", pairs(50, 6))
    other = open_index(places, FilterConfig())
    assert [shard.rows for shard in other.shards] == [5, 6, 7, 4]
    assert sum(path.stat().st_mtime_ns != scans[path] for path in scans) == 1
    same = [one.fingerprint == two.fingerprint for one, two in zip(first.shards, other.shards, strict=True)]
    assert same == [True, False, True, True]


def test_img2datasets_own_parquet_is_left_alone(shards):
    import pyarrow
    import pyarrow.parquet

    theirs = index_path(shards / "00000.tar")
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"], "caption": ["b"]}), theirs)
    before = theirs.read_bytes()
    assert shard_source(shards).num_rows == 19
    assert theirs.read_bytes() == before and len(list(shards.iterdir())) == 5


@pytest.mark.parametrize(
    ("own", "notes"),
    [
        ({"members": []}, b"{}"),
        ({"members": None}, b"{}"),
        ({"members": [None]}, b"{}"),
        ({"members": [{"name": None, "offset": 0, "size": 1}]}, b"{}"),
        ({"members": [{"name": "jpg", "offset": None, "size": 1}]}, b"{}"),
        ({"members": "jpg"}, b"{}"),
        ({"kind": "video"}, b"{}"),
        ({"kind": None}, b"{}"),
        ({"key": None}, b"{}"),
        ({"key": b"\xff"}, b"{}"),
        ({"width": None}, b"{}"),
        ({"flags": 3}, b"{}"),
        ({}, b"no JSON"),
        ({}, b"[" * 10**5),
        ({}, b"[]"),
        ({}, b'{"sha256": 3}'),
    ],
)
def test_a_foreign_table_in_an_indexs_place_is_left_alone(shards, own, notes):
    import pyarrow.parquet

    line = {"key": "a", "kind": "pair", "width": 1, "height": 1, "num_tokens": 0, "sha256": "", "flags": []}
    line["members"] = [{"name": "jpg", "offset": 0, "size": 1}]
    table = pyarrow.Table.from_pylist([line | own]).replace_schema_metadata({b"kgcli": notes})
    pyarrow.parquet.write_table(table, index_path(shards / "00000.tar"))
    source = shard_source(shards, filters={"min_side": 2, "kinds": ["pair"]})
    assert sorted(numbers_of(source.sample(number) for number in range(19))) == list(range(19))


# ---------------------------------------------------------------- other programs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_the_webdataset_package_reads_what_we_write_and_we_what_it_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    rows = [
        Row(f"{number:03d}", Pair(image="png", caption=f"{number} thing"), {"png": encode_image(solid(number))})
        for number in range(6)
    ]
    write_shard(tmp_path / "ours-00000.tar", rows)
    theirs = list(webdataset.WebDataset(str(tmp_path / "ours-00000.tar"), shardshuffle=False))
    assert [row["__key__"] for row in theirs] == [f"{number:03d}" for number in range(6)]
    assert all(row["png"] == encode_image(solid(number)) for number, row in enumerate(theirs))
    assert json.loads(theirs[2]["json"]) == {"kind": "pair", "image": "png", "caption": "2 thing"}
    with webdataset.ShardWriter(str(tmp_path / "theirs-%05d.tar"), maxcount=4, verbose=0) as sink:
        for number in range(10):
            sink.write({"__key__": f"{number:04d}", "png": np.asarray(solid(number)), "txt": f"{number} thing"})
    source = shard_source(tmp_path / "theirs-{00000..00002}.tar", shuffle=False)
    assert numbers_of(source.sample(number) for number in range(10)) == list(range(10))
    assert np.array_equal(np.asarray(source.sample(3).images[0]), np.asarray(solid(3)))


def test_the_two_ways_to_an_index_agree(tmp_path):
    rows = [
        Row("a", Pair(image="png", caption="1 thing"), {"png": encode_image(solid(1))}),
        Row("b", Text(text="2 words")),
        Row("c", Written(prompt="3 <image:0.png> x", target="jpg"),
            {"jpg": encoded(solid(3)), "0.png": encode_image(solid(4))}),
    ]  # fmt: skip
    write_shard(tmp_path / "a-00000.tar", rows)
    own = open_index([str(tmp_path / "a-00000.tar")], FilterConfig())
    index_path(tmp_path / "a-00000.tar").unlink()
    scanned = open_index([str(tmp_path / "a-00000.tar")], FilterConfig())
    assert [own.row(0, place) for place in range(3)] == [scanned.row(0, place) for place in range(3)]
    assert own.shards[0].kinds == scanned.shards[0].kinds == ("pair", "prompt", "text")


# ---------------------------------------------------------------- records


def write_one(tmp_path, record, **images):
    files = {name.removeprefix("n").replace("_", "."): encode_image(image) for name, image in images.items()}
    write_shard(tmp_path / "one-00000.tar", [Row("k", record, files)])
    return tmp_path / "one-00000.tar"


def test_an_interleaved_document_keeps_its_order(tmp_path):
    record = Interleaved(fragments=("A. ", Shown(image="0.png"), " B. ", Shown(image="1.png"), Shown(image="0.png")))
    sample = shard_source(write_one(tmp_path, record, n0_png=solid(0), n1_png=solid(1)), use="read").sample(0)
    assert sample.fragments == ("A. ", None, " B. ", None, None)
    assert [np.asarray(one).tobytes() for one in sample.images] == [
        np.asarray(solid(number)).tobytes() for number in (0, 1, 0)
    ]


@pytest.mark.parametrize("use", ["read", "match", "generate"])
def test_a_captioned_image_follows_its_use(tmp_path, use):
    path = write_one(tmp_path, Pair(image="png", caption="a cat"), png=solid(1))
    sample = shard_source(path, use=use).sample(0)
    assert sample.fragments == {"read": (None, " a cat"), "match": (), "generate": ("a cat",)}[use]
    assert len(sample.images) == (use != "generate") and sample.caption == "a cat"
    assert np.array_equal(np.asarray(sample.render(64).image), np.asarray(solid(1)))


def test_entity_text_and_backgrounds_keep_their_fractions(tmp_path):
    crops = {name: solid(place) for place, name in enumerate(["png", "n0_png", "n1_png", "n2_png", "n3_png"])}
    entities = (
        Entity(noun="cat", span=(2, 5), crop="0.png", crop_on_white="1.png"),
        Entity(noun="owl", span=(13, 16), crop="2.png", crop_on_white="3.png"),
    )
    path = write_one(
        tmp_path, Compositional(image="png", caption="a cat and an owl at night", entities=entities), **crops
    )
    kept = ("a cat", None, " and an owl", None, " at night")
    dropped = ("a ", None, " and an ", None, " at night")
    for fraction, background in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.2, 0.8)):
        settings = {"drop_entity_text": fraction, "keep_background": background}
        source = shard_source(path, use="generate", settings=settings)
        samples = [source.sample(number) for number in range(400)]
        assert {sample.fragments for sample in samples} <= {kept, dropped}
        share = sum(sample.fragments == dropped for sample in samples) / 400
        assert share == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / 400) ** 0.5)
        shown = [np.asarray(image).tobytes() for sample in samples for image in sample.images]
        whole = {np.asarray(crops[name]).tobytes() for name in ("n0_png", "n2_png")}
        share = sum(one in whole for one in shown) / 800
        assert share == pytest.approx(background, abs=4 * (background * (1 - background) / 800) ** 0.5)
        assert source.sample(7) == shard_source(path, use="generate", settings=settings).sample(7)


def test_a_mask_cuts_an_entity_out_on_white(tmp_path):
    from PIL import Image

    mask = Image.new("L", (20, 12))
    mask.paste(255, (4, 2, 10, 11))
    entity = Entity(noun="cat", span=(0, 3), crop="0.png", mask="1.png")
    record = Compositional(image="png", caption="cat", entities=(entity,))
    path = write_one(tmp_path, record, png=solid(1), n0_png=solid(2), n1_png=mask)
    (image,) = shard_source(path, use="generate", settings={"keep_background": 0.0}).sample(0).images
    assert image.size == (9, 9)
    assert np.array_equal(np.asarray(image)[:, 1:7], np.asarray(solid(1))[2:11, 4:10])
    assert (np.asarray(image)[:, 0] == 255).all()


def test_half_of_the_edits_begin_with_the_caption_of_the_image_before(tmp_path):
    record = Edit(before="0.png", after="png", instruction="make it snow", caption="a cat")
    source = shard_source(write_one(tmp_path, record, png=solid(1), n0_png=solid(2)), use="generate")
    found = Counter(source.sample(number).fragments for number in range(400))
    assert set(found) == {("a cat", None, "make it snow"), (None, "make it snow")}
    assert found[(None, "make it snow")] == pytest.approx(200, abs=40)


@pytest.mark.parametrize("use", ["read", "generate"])
def test_lengths_are_known_without_images(tmp_path, use):
    images = {"png": encode_image(solid(0)), "0.png": encode_image(solid(1))}
    entity = Entity(noun="cat", span=(2, 5), crop="0.png", crop_on_white="0.png")
    records = [
        Text(text="words"),
        Pair(image="png", caption="a cat"),
        Interleaved(fragments=("A. ", Shown(image="0.png"), " B.")),
        Compositional(image="png", caption="a cat at night", entities=(entity,)),
        Edit(before="0.png", after="png", instruction="make it snow", caption="a cat"),
        Written(prompt="a <image:0.png> thing", target="png"),
    ]
    rows = [Row(f"{n}", one, {name: images[name] for name in one.images}) for n, one in enumerate(records)]
    write_shard(tmp_path / "a-00000.tar", rows)
    write_tar(tmp_path / "b-00000.tar", pairs(0, 3))
    source = shard_source(tmp_path / "*.tar", use=use)
    for number in range(60):
        assert source.fragments(number) == source.sample(number).fragments
    content = (tmp_path / "b-00000.tar").read_bytes()
    (tmp_path / "b-00000.tar").write_bytes(content.replace(b"JFIF", b"XXXX").replace(b"\xff\xd8", b"XX"))
    source = shard_source(tmp_path / "b-00000.tar", use=use)
    assert source.fragments(0)  # although its image is broken
    with pytest.raises(MissingError):
        source.sample(0)


def test_what_samples_lack_is_known_before_they_are_read(tmp_path):
    path = write_one(tmp_path, Written(prompt="a <image:0.png>"), n0_png=solid(1))
    assert shard_source(path).gives == {"fragments"}
    path = write_one(tmp_path, Written(prompt="a <image:0.png>", target="png"), n0_png=solid(1), png=solid(2))
    assert shard_source(path).gives == {"fragments", "target"}
    assert shard_source(write_one(tmp_path, Text(text="a"))).gives == {"fragments", "caption"}


# ---------------------------------------------------------------- faults


def damage(path, key, suffix, data):
    """Replace the bytes of a member by others of the same size."""
    import tarfile

    with tarfile.open(path) as tar:
        member = tar.getmember(f"{key}.{suffix}")
    content = bytearray(path.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = data[: member.size].ljust(member.size)
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def shown_by(source, num=200):
    return numbers_of(source.sample(number) for number in range(num))


def without(source, bad, num=200):
    """Numbers of the samples that do not show `bad` rows."""
    return {place: number for place, number in enumerate(shown_by(source, num)) if number not in bad}


def check_replaced(before, source, bad):
    """Samples of good rows are as they were, those of bad ones show others and tell of it."""
    after = [source.sample(number) for number in range(200)]
    for place, (was, sample) in enumerate(zip(before, after, strict=True)):
        (now,) = numbers_of([sample])
        assert now not in bad
        if was in bad:
            assert sample.faults and sample == source.sample(place)
        else:
            assert now == was and not sample.faults
    return [fault for sample in after for fault in sample.faults]


def test_a_broken_image_is_replaced_and_no_other_number_shifts(shards):
    before = shown_by(shard_source(shards))
    damage(shards / "00001.tar", "000000006", "jpg", b"not an image")
    faults = check_replaced(before, skipping(shards), {6})
    assert {(os.path.basename(fault.file), fault.row) for fault in faults} == {("00001.tar", "000000006")}
    assert "its jpg is not an image" in faults[0].reason
    with pytest.raises(MissingError, match=r"00001\.tar 000000006: its jpg is not an image.*faults: skip"):
        shown_by(shard_source(shards))


def test_wrong_json_and_text_are_replaced(tmp_path):
    rows = [
        Row(f"{number:03d}", Pair(image="png", caption=f"{number} thing"), {"png": encode_image(solid(number))})
        for number in range(9)
    ]
    path = tmp_path / "a-00000.tar"
    write_shard(path, rows)
    before = shown_by(shard_source(path))
    damage(path, "003", "json", b'{"kind": "pair", "image"')
    damage(path, "005", "json", b'{"kind": "pair", "imag": "png"}')
    faults = check_replaced(before, skipping(path), {3, 5})
    reasons = {fault.row: fault.reason for fault in faults}
    assert "its JSON is damaged" in reasons["003"] and "its JSON: image" in reasons["005"]


def test_a_shard_that_vanished_keeps_its_numbers(shards):
    before = shown_by(skipping(shards / "{00000..00003}.tar"))
    (shards / "00002.tar").unlink()
    faults = check_replaced(before, skipping(shards / "{00000..00003}.tar"), set(range(8, 15)))
    assert {os.path.basename(fault.file) for fault in faults} == {"00002.tar"}
    with pytest.raises(MissingError, match=r"00002\.tar: it is not there; 7 rows of it are known"):
        shard_source(shards / "{00000..00003}.tar")


def test_a_shard_that_was_never_there_is_named(shards):
    with pytest.raises(MissingError, match=r"00004\.tar: it is not there; 0 rows"):
        shard_source(shards / "{00000..00004}.tar")
    assert skipping(shards / "{00000..00004}.tar").num_rows == 19


@pytest.mark.parametrize("left", [0.3, 0.55, 0.9])
def test_a_tar_that_is_cut_short_gives_its_whole_rows(shards, left):
    path = shards / "00002.tar"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    source = skipping(shards)
    found = set(shown_by(source))
    assert set(range(8)) | set(range(15, 19)) <= found and 12 < len(found) <= 19
    if len(found) < 19:
        with pytest.raises(MissingError, match=r"00002\.tar: cut short or damaged after \d rows"):
            shard_source(shards)


def test_a_tar_with_an_index_that_is_cut_short_keeps_its_numbers(tmp_path):
    rows = [
        Row(f"{number:03d}", Pair(image="png", caption=f"{number} thing"), {"png": encode_image(solid(number))})
        for number in range(9)
    ]
    path = tmp_path / "a-00000.tar"
    write_shard(path, rows)
    before = shown_by(shard_source(path))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(MissingError, match="it is cut short; 9 rows of it are known"):
        shard_source(path)
    faults = check_replaced(before, skipping(path), {3, 4, 5, 6, 7, 8})
    assert "the shard is cut short" in faults[0].reason


def test_rows_that_are_no_sample_are_dropped_by_the_index(tmp_path):
    failed = {"x": {"json": b'{"status": "failed_to_download", "caption": null}'}, "y": {"cls": b"3"}}
    write_tar(tmp_path / "a.tar", {**pairs(0, 3), **failed, **pairs(3, 2)})
    index = open_index([str(tmp_path / "a.tar")], FilterConfig())
    assert index.shards[0].rows == 5 and index.shards[0].dropped == 2


def test_a_file_that_is_no_tar_is_a_fault(shards):
    (shards / "00001.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(MissingError, match=r"00001\.tar: cut short or damaged after 0 rows"):
        shard_source(shards)
    assert skipping(shards).num_rows == 16


def test_an_index_that_points_elsewhere_is_a_fault(shards):
    import pyarrow.parquet

    from kgcli.data.shards.layout import index_schema

    tar = shards / "00000.tar"
    line = {"key": "a", "kind": "pair", "width": 1, "height": 1, "num_tokens": 0, "sha256": "", "flags": []}
    for offset, size in ((-5, 3), (0, 2**40), (2**50, 10)):
        members = [{"name": "jpg", "offset": offset, "size": size}]
        table = pyarrow.Table.from_pylist([{**line, "members": members}], schema=index_schema())
        pyarrow.parquet.write_table(table, index_path(tar))
        with pytest.raises(MissingError):
            skipping(tar).sample(0)


def test_all_rows_bad_ends_with_the_last_fault(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{n}": {"jpg": b"no image", "txt": b"x"} for n in range(5)})
    with pytest.raises(MissingError, match=r"a\.tar \d and \d+ rows drawn for it are all bad: its jpg is not an image"):
        skipping(tmp_path / "a.tar").sample(0)


def test_shards_of_a_web_server_are_read_and_may_vanish(shards):
    gone = set()
    with served(shards, gone) as url:
        source = skipping(url)
        before = shown_by(source)
        assert before == shown_by(skipping(url)) and set(before) == set(range(19))
        gone.add("00003.tar")
        faults = check_replaced(before, source, set(range(15, 19)))
        assert "the server answers 404" in faults[0].reason
        check_replaced(before, skipping(url), set(range(15, 19)))


class Rows:
    """Moments of rows that tell which rows they are of."""

    def rows(self, indices):
        return {"moments": torch.tensor(indices)}


def test_what_stands_for_a_row_of_a_busy_server_is_cached_as_its_own_alone(shards, monkeypatch):
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)
    busy = set()
    with served(shards, busy=busy) as url:
        source = skipping(url)
        part = source.parts()[3]
        images = PoolImages(source, part, 8, 1)
        before = [images[place][0] for place in range(part.num_rows)]
        collate = Collator(frozenset({"targets", "moments"}), image_size=8, vision_size=8, pool=Rows())
        batches = Batches(source, collate, batch_size=19)
        whole = batches[0]
        busy.add("00003.tar")
        found = images[0]
        assert isinstance(found, PassingError) and "the server answers 503" in str(found)
        batch = batches[0]
        assert len(batch.faults) == part.num_rows and all("503" in fault.reason for fault in batch.faults)
        target_of = dict(zip(whole.moments.tolist(), whole.targets, strict=True))
        assert all(
            torch.equal(target_of[row], one) for row, one in zip(batch.moments.tolist(), batch.targets, strict=True)
        )
        assert set(batch.moments.tolist()) <= set(range(part.first))
        busy.clear()
        assert all(torch.equal(images[place][0], one) for place, one in enumerate(before))
        assert torch.equal(batches[0].targets, whole.targets) and not batches[0].faults


class _Endless(BaseHTTPRequestHandler):
    """A web server that announces large files and sends only their beginning, until it is stopped."""

    def __init__(self, status, content_range, stopped, *given):
        self.status, self.content_range, self.stopped = status, content_range, stopped
        super().__init__(*given)

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(10**12))
        if self.content_range:
            self.send_header("Content-Range", self.content_range)
        self.end_headers()
        self.wfile.write(b"abc")
        self.wfile.flush()
        self.stopped.wait(60)

    def log_message(self, *given):
        pass


@contextmanager
def endless(status, content_range=""):
    """Serve an endless file; yields its URL."""
    stopped = threading.Event()
    with running(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Endless, status, content_range, stopped))) as url:
        try:
            yield f"{url}/a.tar"
        finally:
            stopped.set()


def test_no_more_is_read_of_a_server_than_was_asked_for():
    with endless(206, "bytes 0-1/1000") as url:
        assert read_range(url, 0, 2) == b"ab"
    for told in ("", "bytes 5-6/1000", "bytes 0-999/1000", "bytes */1000"):
        with endless(206, told) as url, pytest.raises(MissingError, match="other bytes than those asked for"):
            read_range(url, 0, 2)


def test_places_that_cannot_be_read_at_all_say_why():
    with endless(200) as url, pytest.raises(UsageError, match="does not serve ranges of bytes; download the shard"):
        shard_source(url)
    with pytest.raises(UsageError, match=r"nothing://x/a\.tar is no URL that can be read"):
        shard_source("nothing://x/a.tar")
    with pytest.raises(UsageError, match="a web server lists no files"):
        shard_source("http://127.0.0.1/*.tar")


def test_images_without_captions_can_be_generated_or_matched(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{n}": {"png": encode_image(solid(n)), "cls": b"3"} for n in range(3)})
    assert shard_source(tmp_path / "a.tar", use="generate").gives == {"target"}
    source = shard_source(tmp_path / "a.tar", use="match", shuffle=False)
    assert source.gives == {"target", "images"}
    assert np.array_equal(np.asarray(source.sample(2).images[0]), np.asarray(solid(2)))


def test_a_full_disk_is_named_where_the_index_is_written(shards, monkeypatch, tmp_path):
    import resource

    from kgcli.errors import OutputError

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            shard_source(shards)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".partial")]
    shutil.rmtree(tmp_path / "cache")
    assert shard_source(shards).num_rows == 19

"""Rows that stand for bad ones: caches that compare fingerprints never take the image of another row."""

import json

import numpy as np
import pytest
from foreign_shards import encoded, pairs, solid, write_tar

from kgcli.data.sources import open_source
from kgcli.recipe import DataConfig
from kgcli.speed.first_samples import FirstSamples

NUM = 8


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def photos(tmp_path):
    """A folder of captioned images."""
    (tmp_path / "photos").mkdir()
    for number in range(NUM):
        solid(number).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"{number} cats")
    return tmp_path / "photos"


def opened(*sources, seed=0, faults="skip"):
    given = {"sources": list(sources), "batch_size": 4, "seed": seed, "faults": faults}
    return open_source(DataConfig.model_validate(given), 64, "generate")


def images_of(path, **settings):
    return opened({"kind": "images", "path": str(path)}, **settings)


def cached(source):
    """What the caches of a source are kept by, and the image they hold, for each row."""
    found = []
    for part in source.parts():
        for row in range(part.first, part.first + part.num_rows):
            image = np.asarray(source.read(row).render(8).image).tobytes()
            found.append((json.dumps([part.fingerprint, row - part.first]), image))
    return found


def check_that_no_cache_is_of_another_image(before, after):
    """See that some row shows another image than before, and that none of them is found in a cache of before."""
    kept = dict(before)
    assert [image for _, image in before] != [image for _, image in after], "the test changes nothing"
    assert all(kept.get(name, image) == image for name, image in after)


def test_a_cache_is_not_of_another_seed(photos):
    (photos / "3.txt").unlink()
    check_that_no_cache_is_of_another_image(cached(images_of(photos)), cached(images_of(photos, seed=1)))
    assert images_of(photos).fingerprint() == images_of(photos).fingerprint()


@pytest.mark.parametrize("more", [False, True])
def test_a_cache_is_not_of_a_caption_that_was_missing(photos, more):
    others = [{"kind": "images", "path": str(photos), "weight": 2}] if more else []
    (photos / "3.txt").unlink()
    before = cached(opened({"kind": "images", "path": str(photos)}, *others))
    (photos / "3.txt").write_text("3 cats")
    check_that_no_cache_is_of_another_image(before, cached(opened({"kind": "images", "path": str(photos)}, *others)))


def test_a_cache_is_not_of_an_input_image_that_was_bad(photos, tmp_path):
    lines = [{"prompt": f"<image:photos/{n}.png> a", "target": f"photos/{(n + 1) % NUM}.png"} for n in range(NUM)]
    (tmp_path / "extra.png").write_bytes(b"no image")
    lines[2]["prompt"] = "<image:extra.png> a"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"kind": "prompts", "path": str(tmp_path / "a.jsonl")}
    before = cached(opened(given))
    solid(9).save(tmp_path / "extra.png")
    check_that_no_cache_is_of_another_image(before, cached(opened(given)))


def test_a_cache_is_not_of_a_bad_line_elsewhere(photos, tmp_path):
    def write(bad):
        lines = [json.dumps({"image": f"photos/{n}.png", "caption": "x"}) for n in range(NUM) if n != 5]
        lines.insert(bad, "{")
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        return cached(opened({"kind": "images", "path": str(tmp_path / "a.jsonl")}))

    check_that_no_cache_is_of_another_image(write(2), write(3))


def test_a_cache_of_a_shard_is_not_of_another_shards_row(tmp_path):
    pytest.importorskip("pyarrow")
    groups = pairs(0, 2)
    groups["000000000"]["jpg"] = b"no image"
    write_tar(tmp_path / "set" / "0.tar", groups)
    given = {"kind": "shards", "path": str(tmp_path / "set"), "shuffle": False}
    write_tar(tmp_path / "set" / "1.tar", pairs(10, 6))
    before = cached(opened(given))
    write_tar(tmp_path / "set" / "1.tar", pairs(30, 6))
    check_that_no_cache_is_of_another_image(before, cached(opened(given)))
    kept = [{json.dumps(part.fingerprint) for part in opened(given, faults="stop").parts()}]
    write_tar(tmp_path / "set" / "1.tar", pairs(50, 6))
    kept.append({json.dumps(part.fingerprint) for part in opened(given, faults="stop").parts()})
    assert len(kept[0] & kept[1]) == 1, "where faults stop, a shard's cache outlives changes of the others"


def test_a_cache_is_not_of_a_shard_that_was_damaged(tmp_path):
    pytest.importorskip("pyarrow")
    from kgcli.data.shards.records import Pair
    from kgcli.data.shards.write import Row, encode_image, write_shard

    rows = [Row(f"{n}", Pair(image="png", caption="x"), {"png": encode_image(solid(n))}) for n in range(NUM)]
    tar = tmp_path / "a-00000.tar"
    write_shard(tar, rows)  # its index holds the hash of the whole file
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"\x89PNG", b"XXXX", 1))
    given = {"kind": "shards", "path": str(tar)}
    before = cached(opened(given))
    tar.write_bytes(whole)
    check_that_no_cache_is_of_another_image(before, cached(opened(given)))


def test_a_cache_is_not_of_a_data_sets_image_that_was_bad(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    path = tmp_path / "set"
    path.mkdir()
    cells = [{"bytes": encoded(solid(n), "png"), "path": None} for n in range(NUM)]
    cells[3] = {"bytes": None, "path": "3.png"}
    table = pyarrow.table({"image": cells, "caption": [f"{n} things" for n in range(NUM)]})
    pyarrow.parquet.write_table(table, path / "train.parquet")
    given = {"kind": "dataset", "path": str(path)}
    before = cached(opened(given))
    check_that_no_cache_is_of_another_image(before, cached(opened(given, seed=1)))
    solid(30).save(path / "3.png")
    check_that_no_cache_is_of_another_image(before, cached(opened(given)))


def test_the_first_samples_of_another_order_have_other_caches(photos):
    first, other = (cached(FirstSamples(images_of(photos, seed=seed, faults="stop"), 4)) for seed in (0, 1))
    check_that_no_cache_is_of_another_image(first, other)


def test_images_are_of_every_format_that_is_opened(tmp_path):
    for name in ("a.ppm", "b.PGM", "c.png"):
        solid(1).convert("L" if name == "b.PGM" else "RGB").save(tmp_path / name)
    assert images_of(tmp_path, faults="stop").num_rows == 3

"""`as_published` loses the compositional samples that the published loader loses by mistake, and no others."""

import numpy as np
import pytest
from foreign_shards import entity_rows, solid

from kgcli.data.shards.records import Compositional, Entity
from kgcli.data.shards.write import Row, encode_image, write_shard
from kgcli.data.sources import open_source
from kgcli.errors import MissingError
from kgcli.recipe import DataConfig

pytest.importorskip("pyarrow")
NUM = 8


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shards(tmp_path):
    write_shard(tmp_path / "a-00000.tar", entity_rows(range(NUM)))
    return tmp_path / "a-00000.tar"


def source_of(path, as_published=True, **data):
    source = {"kind": "shards", "path": str(path), "as_published": as_published}
    return open_source(DataConfig.model_validate({"sources": [source], "batch_size": 4, **data}), 64, "generate")


def test_dropped_captions_that_begin_with_an_image_are_lost_and_no_other_sample_changes(shards):
    plain, published = source_of(shards, as_published=False), source_of(shards)
    lost = 0
    for number in range(400):
        was, now = plain.sample(number), published.sample(number)
        assert now.fragments[0] is not None and not now.faults
        assert published.fragments(number) == now.fragments
        if was.fragments[0] is None:
            lost += 1
        else:
            assert now == was and published.row_of(number) == plain.row_of(number)
    assert lost == pytest.approx(100, abs=35)  # half of the captions, half of the draws
    assert published.sample(399) == source_of(shards).sample(399)


def test_what_takes_its_place_draws_anew(shards):
    plain, published = source_of(shards, as_published=False), source_of(shards)
    numbers = [number for number in range(800) if plain.sample(number).fragments[0] is None]
    kept = sum("cat" in "".join(filter(None, published.sample(number).fragments)) for number in numbers)
    assert kept / len(numbers) == pytest.approx(2 / 3, abs=0.12)  # of the draws that are not lost again


def test_cached_moments_are_those_of_the_row_that_is_shown(shards):
    source = source_of(shards)
    for number in range(60):
        own, cached = source.sample(number), source.read(source.row_of(number))
        assert np.array_equal(np.asarray(own.render(8).image), np.asarray(cached.render(8).image))


def test_nothing_left_is_an_error_and_other_settings_are_refused(shards):
    entity_first = source_of(shards, drop_entity_text=1.0)
    assert {entity_first.row_of(number) % 2 for number in range(50)} == {0}
    with pytest.raises(ValueError, match="keep would show what as_published loses"):
        source_of(shards, keep=True)
    with pytest.raises(ValueError, match="as_published is of a source of kind shards"):
        given = {"kind": "captions", "path": "a.txt", "as_published": True}
        DataConfig.model_validate({"sources": [given], "batch_size": 4})


def test_a_source_of_which_all_is_lost_says_so(tmp_path):
    entity = Entity(noun="cat", span=(0, 3), crop="0.png", crop_on_white="0.png")
    record = Compositional(image="png", caption="cat", entities=(entity,))
    images = {"png": encode_image(solid(1)), "0.png": encode_image(solid(2))}
    write_shard(tmp_path / "a-00000.tar", [Row("k", record, images)])
    with pytest.raises(MissingError, match=r"a-00000\.tar k: as_published loses it and all rows drawn for it"):
        source_of(tmp_path / "a-00000.tar", drop_entity_text=1.0).sample(0)


@pytest.mark.parametrize("dropped", [0.5, 1.0])
def test_what_stands_for_a_bad_row_is_not_lost_either(shards, dropped):
    whole = shards.read_bytes()
    at = whole.index(b"\x89PNG", whole.index(b"004.json"))
    shards.write_bytes(whole[:at] + b"XXXX" + whole[at + 4 :])
    source = source_of(shards, faults="skip", drop_entity_text=dropped)
    num_faults = 0
    for number in range(400):
        own, cached = source.sample(number), source.read(source.row_of(number))
        assert own.fragments[0] is not None
        assert np.array_equal(np.asarray(own.render(8).image), np.asarray(cached.render(8).image))
        num_faults += bool(own.faults)
    assert num_faults > 30

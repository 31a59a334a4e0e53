"""Servers that are busy for a while: no number shifts, and no cache is of another row."""

import errno
from itertools import islice

import httpx2
import numpy as np
import pytest
import torch
from foreign_shards import entity_rows, pairs, write_shards, write_tar
from range_server import served

from kgcli.data.batch import Collator
from kgcli.data.loader import Batches
from kgcli.data.shards import storage, web
from kgcli.data.shards.write import write_shard
from kgcli.data.sources import open_source
from kgcli.data.sources.kept import KeptSource
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import MissingError, PassingError
from kgcli.recipe import DataConfig
from kgcli.speed.first_samples import FirstSamples
from kgcli.weights.shipped import DEFAULT_MODEL

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(DEFAULT_MODEL / "tokenizer")


class Rows:
    """Moments of rows that tell which rows they are of."""

    def rows(self, indices):
        return {"moments": torch.tensor(indices)}


def opened(url, **own):
    data = {"sources": [{"kind": "shards", "path": url, **own}], "batch_size": 4, "faults": "skip"}
    return open_source(DataConfig.model_validate(data), 64, "generate")


def batches_of(source, tokenizer, **settings):
    needs = frozenset({"tokens", "targets", "moments"})
    collator = Collator(needs, image_size=8, vision_size=8, num_slots=4, tokenizer=tokenizer, pool=Rows())
    return Batches(source, collator, batch_size=4, **settings)


def write_own(folder):
    """Four shards with an index, of captions half of which begin with their entity."""
    for shard in range(4):
        write_shard(folder / f"{shard:05d}.tar", entity_rows(range(shard * 4, shard * 4 + 4)))
    return folder


def test_a_bucket_is_not_dealt_by_a_process_that_cannot_read_its_samples(tmp_path, tokenizer):
    """Captions of many lengths, some of rows whose image is bad: another row's length would stand for theirs."""
    groups = pairs(0, 8)
    for place, files in enumerate(groups.values()):
        files["txt"] = b"a red thing " * (place + 1)
        files["jpg"] = b"no image" if place % 3 == 0 else files["jpg"]
    write_shards(tmp_path, (8,)).joinpath("00000.tar").rename(tmp_path / "00001.tar")
    write_tar(tmp_path / "00000.tar", groups)
    busy = set()
    with served(tmp_path, busy=busy) as url:
        source = opened(url.replace("00003", "00001"))
        alone = batches_of(source, tokenizer, bucket=2)
        ranks = [batches_of(source, tokenizer, bucket=2, rank=rank, num_ranks=2) for rank in range(2)]
        dealt = [ranks[0].indices(step) for step in range(2)]
        busy.add("00000.tar")
        with pytest.raises(PassingError, match="the server answers 503; `data.bucket` needs its length"):
            ranks[1][0]
        index = next(number for number in range(16) if source.row_of(number) == 0)
        with pytest.raises(PassingError):
            source.fragments(index)  # the sample, read next, may show another row's
        busy.clear()
        dealt += [ranks[1].indices(step) for step in range(2)]
        assert sorted(number for step in dealt for number in step) == list(range(8))
        assert [sorted(dealt[step] + dealt[2 + step]) for step in range(2)] == [
            sorted(alone.indices(step)) for step in range(2)
        ]


def test_an_index_that_cannot_be_read_now_is_not_made_from_the_tar(tmp_path):
    busy = set()
    with served(write_own(tmp_path), busy=busy) as url:
        busy.add("00003.parquet")
        with pytest.raises(PassingError, match=r"00003\.parquet cannot be read: the server answers 503"):
            opened(url)
        assert not list((tmp_path / "cache").rglob("*.arrow")) and not list((tmp_path / "cache").rglob("*.parquet"))
        busy.clear()
        whole = opened(url)
        busy.add("00003.tar")
        with pytest.raises(PassingError):  # neither moments nor numbers may change with it
            opened(url)
        busy.clear()
        assert opened(url).fingerprint() == whole.fingerprint()


def test_a_shard_that_is_not_reached_now_is_no_empty_shard(tmp_path):
    busy = {"00003.tar"}
    with served(write_shards(tmp_path), busy=busy) as url:
        with pytest.raises(PassingError, match=r"00003\.tar cannot be read: the server answers 503"):
            opened(url)
        busy.clear()
        assert opened(url).num_rows == 19
        busy.add("00003.tar")
        with pytest.raises(PassingError):
            opened(url)


def test_an_index_without_a_shard_that_was_gone_is_not_taken_while_the_shard_is_not_reached(tmp_path):
    gone, busy = {"00003.tar"}, set()
    with served(write_shards(tmp_path), gone=gone, busy=busy) as url:
        assert opened(url).num_rows == 15
        gone.clear()
        busy.add("00003.tar")
        with pytest.raises(PassingError, match="the server answers 503"):
            opened(url)
        busy.clear()
        assert opened(url).num_rows == 19


def test_a_row_that_as_published_may_lose_is_not_known_while_its_words_cannot_be_read(tmp_path, tokenizer):
    busy = set()
    with served(write_own(tmp_path), busy=busy) as url:
        source = opened(url, as_published=True)
        batches = batches_of(source, tokenizer)
        whole = [batches[step] for step in range(4)]
        target_of = {
            row: target for one in whole for row, target in zip(one.moments.tolist(), one.targets, strict=True)
        }
        busy.add("00003.tar")
        index = next(number for number in range(16) if source.first_row(number) >= 12)
        with pytest.raises(PassingError):
            source.row_of(index)
        faults = []
        for batch in (batches[step] for step in range(4)):
            faults += batch.faults
            rows = batch.moments.tolist()
            assert max(rows) < 12
            assert all(
                torch.equal(target_of[row], one)
                for row, one in zip(rows, batch.targets, strict=True)
                if row in target_of
            )
        assert faults and all(fault.passing and "00003.tar cannot be read" in fault.reason for fault in faults)
        busy.clear()
        again = [batches[step] for step in range(4)]
        assert all(torch.equal(one.targets, other.targets) for one, other in zip(whole, again, strict=True))
        assert [one.moments.tolist() for one in again] == [one.moments.tolist() for one in whole]


@pytest.mark.parametrize("derived", [KeptSource, lambda source: FirstSamples(source, 12)])
def test_a_substitute_that_cannot_be_read_again_is_passed_over(tmp_path, monkeypatch, derived):
    source = derived(opened(str(write_shards(tmp_path) / "{00000..00003}.tar")))
    error = PassingError("http://x cannot be read")
    before = list(islice(source.substitutes(0, error), 4))
    fresh, read, failed = derived(source.source), type(source).read, []

    def flaky(self, row):
        if len(failed) < 2:
            failed.append(row)
            raise PassingError("http://y cannot be read")
        return read(self, row)

    monkeypatch.setattr(type(source), "read", flaky)
    after = list(islice(fresh.substitutes(0, error), 2))
    assert [row for _, row in after] == [row for _, row in before[2:]]
    for (one, _), (other, _) in zip(after, before[2:], strict=True):
        assert np.array_equal(np.asarray(one.render(8).image), np.asarray(other.render(8).image))


def answered(status):
    """An error of a client that keeps the server's answer, as the Hub's does."""
    error = OSError("said")
    error.response = httpx2.Response(status)
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((OSError(code, "said"), False) for code in (errno.EINVAL, errno.ENAMETOOLONG, errno.EPERM, errno.ENOSYS)),
        *((OSError(code, "said"), True) for code in (errno.EIO, errno.ECONNRESET, errno.EBUSY)),
        *((error, False) for error in (FileNotFoundError("gone"), ValueError("no name"), OSError("Forbidden: x"))),
        (answered(403), False),
        (answered(503), True),
        (httpx2.ConnectError("refused"), True),  # of the Hub's client, and no OSError
        (TimeoutError("late"), True),
    ],
)
def test_faults_of_a_remote_file_itself_last(error, passes):
    with pytest.raises(MissingError) as caught, storage._remote_faults("s3://bucket/a.tar"):
        raise error
    assert isinstance(caught.value, PassingError) is passes


def test_answers_of_a_server_that_may_be_others_the_next_time():
    passing = [status for status in range(400, 600) if web.may_pass(status)]
    assert passing == [408, 425, 429, 500, *range(502, 600)]

"""Samples that are too long for the model: skipped and counted as other faults are, and no number shifts."""

import json
import weakref

import pytest
import torch
from foreign_shards import pairs, write_tar

from kgcli.data.batch import Collator
from kgcli.data.loader import Batches, load_batches
from kgcli.data.sources import open_source
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import PromptError
from kgcli.recipe import DataConfig
from kgcli.speed.first_samples import FirstSamples
from kgcli.weights.shipped import DEFAULT_MODEL

NUM, LONG, STEPS = 12, {3, 7}, 15
MAX_TOKENS = 24


class Rows:
    """A pool of moments whose values are the numbers of the rows."""

    def rows(self, indices):
        return {"moments": torch.tensor(indices)}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(DEFAULT_MODEL / "tokenizer")


@pytest.fixture
def captions(tmp_path):
    lines = [f"{n} cats " + "on a red mat " * (20 if n in LONG else 1) for n in range(NUM)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"caption": line}) + "\n" for line in lines))
    return tmp_path / "a.jsonl"


def source_of(path, faults="skip", more=(), **data):
    sources = [{"kind": "captions", "path": str(path)}, *more]
    return open_source(
        DataConfig.model_validate({"sources": sources, "batch_size": 4, "faults": faults, **data}), 64, "read"
    )


def batches_of(source, tokenizer, limit=MAX_TOKENS, **settings):
    needs = frozenset({"tokens", "moments"})
    collator = Collator(needs, 64, 64, num_slots=4, tokenizer=tokenizer, pool=Rows(), max_tokens=limit)
    return Batches(source, collator, batch_size=4, **settings)


def shown(batches, steps=STEPS):
    """The tokens and the row of each sample, by number."""
    found = {}
    for step in range(steps):
        batch = batches[step]
        for place, number in enumerate(batch.numbers):
            ids = batch.tokens[place][batch.token_mask[place]].tolist()
            found[number] = (ids, int(batch.moments[place]))
    return found


@pytest.mark.parametrize("bucket", [1, 3])
@pytest.mark.parametrize("keep", [False, True])
def test_a_sample_that_is_too_long_is_replaced_and_no_other_number_shifts(captions, tokenizer, bucket, keep):
    def batches(limit=MAX_TOKENS):
        return batches_of(source_of(captions, keep=keep), tokenizer, limit, bucket=bucket)

    all_of_them, kept = shown(batches(limit=None)), shown(batches())
    ids = {row: ids for ids, row in all_of_them.values()}
    assert kept.keys() == all_of_them.keys() and set(range(4 * STEPS)) == kept.keys()
    for number, (was, row) in all_of_them.items():
        if row in LONG:
            assert kept[number][1] not in LONG, "cached moments are those of the row that is shown"
            assert kept[number][0] == ids[kept[number][1]]
        else:
            assert kept[number] == (was, row)
    anew = batches()
    faults = [fault for step in range(STEPS) for fault in anew[step].faults]
    assert {fault.row for fault in faults} == {f"line {number + 1}" for number in LONG}
    assert all("tokens long" in fault.reason and "at most 24" in fault.reason for fault in faults)
    assert len(faults) == sum(row in LONG for _, row in all_of_them.values())


def test_a_batch_with_a_long_sample_reads_the_others_once_and_holds_few(captions, tokenizer, monkeypatch):
    source, made, most = source_of(captions), [], 0
    batches, load = batches_of(source, tokenizer), source.load
    numbers, sample = [], batches._sample

    def counted(row, number):
        nonlocal most
        most = max(most, sum(one() is not None for one in made))
        found = load(row, number)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(source, "load", counted)
    monkeypatch.setattr(batches, "_sample", lambda number: numbers.append(number) or sample(number))
    num_faults = sum(len(batches[step].faults) for step in range(STEPS))
    assert num_faults and sorted(numbers) == list(range(4 * STEPS))
    assert most <= 2  # beside the one that is read


def test_ranks_and_workers_see_the_same_substitutes(captions, tokenizer):
    alone = shown(batches_of(source_of(captions), tokenizer))
    ranks = [batches_of(source_of(captions), tokenizer, rank=rank, num_ranks=2) for rank in range(2)]
    assert {**shown(ranks[0]), **shown(ranks[1])} == alone
    loaded = load_batches(batches_of(source_of(captions), tokenizer), 9, STEPS, 1)
    assert [batch.moments.tolist() for batch in loaded] == [
        [alone[number][1] for number in range(4 * step, 4 * step + 4)] for step in range(9, STEPS)
    ]


def test_the_fractions_of_a_mixture_stay_exact(captions, tokenizer, tmp_path):
    (tmp_path / "b.txt").write_text("two dogs\n")
    source = source_of(captions, more=[{"kind": "captions", "path": str(tmp_path / "b.txt")}])
    rows = [row for _, row in shown(batches_of(source, tokenizer, limit=MAX_TOKENS), steps=250).values()]
    assert sum(row == NUM for row in rows) == 500 and not LONG & set(rows)


def test_a_run_stops_at_it_unless_faults_are_skipped(captions, tokenizer):
    with pytest.raises(PromptError, match=r"a\.jsonl line \d is \d+ tokens long"):
        shown(batches_of(source_of(captions, faults="stop"), tokenizer))
    with pytest.raises(PromptError, match="at most 3"):  # none fits
        shown(batches_of(source_of(captions), tokenizer, limit=3))


def test_faults_of_the_substitute_are_told_too(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    groups = pairs(0, 6)
    groups["000000001"]["txt"] = b"a very long caption " * 40
    groups["000000004"]["jpg"] = b"no image"
    given = {"sources": [{"kind": "shards", "path": str(write_tar(tmp_path / "a.tar", groups))}], "batch_size": 4}
    source = open_source(DataConfig.model_validate({**given, "faults": "skip"}), 64, "generate")
    batches = batches_of(source, tokenizer)
    faults = {fault.row: fault.reason for step in range(30) for fault in batches[step].faults}
    assert faults.keys() == {"000000001", "000000004"}
    assert "tokens long" in faults["000000001"] and "not an image" in faults["000000004"]


def test_a_row_that_stands_for_a_bad_one_is_named_where_it_is_too_long(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    groups = pairs(0, 6)
    groups["000000004"]["jpg"] = b"no image"

    def source():
        given = [{"kind": "shards", "path": str(write_tar(tmp_path / "a.tar", groups))}]
        data = {"sources": given, "batch_size": 4, "faults": "skip"}
        return open_source(DataConfig.model_validate(data), 64, "generate")

    substitute = source().read(4).origin.split()[-1]
    groups[substitute]["txt"] = b"a very long caption " * 40
    batches = batches_of(source(), tokenizer)
    faults = [fault for step in range(9) for fault in batches[step].faults]
    assert {fault.row for fault in faults if "tokens long" in fault.reason} == {substitute}
    assert {fault.row for fault in faults if "not an image" in fault.reason} == {"000000004"}


def test_a_short_run_replaces_them_by_rows_that_it_has(captions, tokenizer):
    source = FirstSamples(source_of(captions), 8)
    ids = {row: ids for ids, row in shown(batches_of(source, tokenizer, limit=None), steps=4).values()}
    assert ids.keys() == set(range(8)) and any(len(one) > MAX_TOKENS for one in ids.values())
    for number, (own, row) in shown(batches_of(source, tokenizer), steps=4).items():
        assert own == ids[row] and len(own) <= MAX_TOKENS
        assert row == number % 8 or len(ids[number % 8]) > MAX_TOKENS

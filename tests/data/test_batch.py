"""Laws of batches: what a step sees is a function of its number, and buckets move samples but lose none."""

import numpy as np
import pytest

from kgcli.config import load_recipe
from kgcli.data import batch as module
from kgcli.data.batch import Batches, Collator
from kgcli.data.tokenizer import Tokenizer
from kgcli.weights.shipped import DEFAULT_MODEL

NUM_STEPS = 8


@pytest.fixture(scope="module")
def collator():
    return Collator(frozenset({"tokens"}), 64, 64, num_slots=16, tokenizer=Tokenizer.load(DEFAULT_MODEL / "tokenizer"))


def batches(collator, *overrides, **share):
    return Batches(load_recipe("nano/align", ["data.batch_size=56", *overrides]), collator, **share)


def test_a_bucket_holds_the_samples_of_its_steps_and_no_others(collator):
    plain, dealt = batches(collator), batches(collator, f"data.bucket={NUM_STEPS}")
    together = range(NUM_STEPS, 2 * NUM_STEPS)
    assert [dealt.indices(step) for step in together] != [plain.indices(step) for step in together]
    seen = sorted(index for step in together for index in dealt.indices(step))
    assert seen == sorted(index for step in together for index in plain.indices(step))


def test_a_bucketed_step_does_not_depend_on_the_steps_before_it(collator):
    through, anew = (batches(collator, f"data.bucket={NUM_STEPS}") for _ in range(2))
    rows = [through.indices(step) for step in range(12)]
    assert anew.indices(11) == rows[11]


def test_processes_share_a_bucket_without_a_sample_twice(collator):
    shares = [batches(collator, f"data.bucket={NUM_STEPS}", rank=rank, num_ranks=2) for rank in range(2)]
    seen = [index for step in range(NUM_STEPS) for share in shares for index in share.indices(step)]
    assert sorted(seen) == list(range(NUM_STEPS * 56))


def test_buckets_leave_little_padding(collator):
    def padded_over_real(batches, num_steps):
        masks = [batches[step].token_mask.numpy() for step in range(num_steps)]
        return sum(mask.size for mask in masks) / np.concatenate([mask.ravel() for mask in masks]).sum()

    assert padded_over_real(batches(collator), 4) > 1.4
    assert padded_over_real(batches(collator, "data.bucket=32"), 32) <= 1.10


def test_a_bucketed_sample_is_drawn_once(collator, monkeypatch):
    drawn, draw = [], module.draw
    monkeypatch.setattr(module, "draw", lambda *a, **shares: drawn.append(a[2]) or draw(*a, **shares))
    dealt = batches(collator, "data.bucket=2")
    assert all(dealt[step].tokens is not None for step in range(2))
    assert sorted(drawn) == list(range(2 * 56))

"""Laws of batches: what a step sees is a function of its number, and buckets move samples but lose none."""

import numpy as np
import pytest
import torch

from kgcli.data.batch import Collator
from kgcli.data.loader import Batches, load_batches
from kgcli.data.sources.kept import KeptSource
from kgcli.data.sources.mixture import Mixture, kind_of_steps
from kgcli.data.sources.world_source import WorldSource
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import ConfigError, MissingError
from kgcli.speed.first_samples import FirstSamples
from kgcli.weights.shipped import DEFAULT_MODEL

NUM_STEPS = 8


@pytest.fixture(scope="module")
def collator():
    return Collator(frozenset({"tokens"}), 64, 64, num_slots=16, tokenizer=Tokenizer.load(DEFAULT_MODEL / "tokenizer"))


def batches(collator, source=None, **settings):
    source = source or WorldSource({"text": 1.0}, seed=0, image_size=64)
    return Batches(source, collator, batch_size=56, **settings)


def test_a_bucket_holds_the_samples_of_its_steps_and_no_others(collator):
    plain, dealt = batches(collator), batches(collator, bucket=NUM_STEPS)
    together = range(NUM_STEPS, 2 * NUM_STEPS)
    assert [dealt.indices(step) for step in together] != [plain.indices(step) for step in together]
    seen = sorted(index for step in together for index in dealt.indices(step))
    assert seen == sorted(index for step in together for index in plain.indices(step))


def test_a_bucketed_step_does_not_depend_on_the_steps_before_it(collator):
    through, anew = (batches(collator, bucket=NUM_STEPS) for _ in range(2))
    rows = [through.indices(step) for step in range(12)]
    assert anew.indices(11) == rows[11]


def test_processes_share_a_bucket_without_a_sample_twice(collator):
    shares = [batches(collator, bucket=NUM_STEPS, rank=rank, num_ranks=2) for rank in range(2)]
    seen = [index for step in range(NUM_STEPS) for share in shares for index in share.indices(step)]
    assert sorted(seen) == list(range(NUM_STEPS * 56))


def test_a_bucket_is_dealt_alike_whatever_the_number_of_processes(collator):
    alone = batches(collator, bucket=NUM_STEPS)
    shares = [batches(collator, bucket=NUM_STEPS, rank=rank, num_ranks=4) for rank in range(4)]
    for step in (0, 3, NUM_STEPS + 1):
        assert sorted(alone.indices(step)) == sorted(i for share in shares for i in share.indices(step))


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(collator):
    with pytest.raises(ConfigError, match="batch_size is 56, which 3 processes cannot split evenly"):
        batches(collator, rank=0, num_ranks=3)


def test_an_error_in_a_worker_is_one_line_as_it_is_without(collator):
    class Broken(WorldSource):
        def sample(self, index):
            raise MissingError("photos.jsonl line 3: there is no image cat.png")

    source = Broken({"text": 1.0}, seed=0, image_size=64)
    for workers in (0, 1):
        with pytest.raises(MissingError) as caught:
            next(load_batches(batches(collator, source), 0, 2, workers))
        assert str(caught.value) == "photos.jsonl line 3: there is no image cat.png"


def test_buckets_leave_little_padding(collator):
    def padded_over_real(batches, num_steps):
        masks = [batches[step].token_mask.numpy() for step in range(num_steps)]
        return sum(mask.size for mask in masks) / np.concatenate([mask.ravel() for mask in masks]).sum()

    assert padded_over_real(batches(collator), 4) > 1.4
    assert padded_over_real(batches(collator, bucket=32), 32) <= 1.10


def test_a_bucket_leaves_steps_of_one_source_together(collator):
    """Each step still has the samples of one source, as many of each, and less padding within each."""
    sources = [WorldSource({kind: 1.0}, seed=seed, image_size=16) for seed, kind in enumerate(("text", "caption"))]
    mixture = Mixture(sources, [3, 1], seed=0, together=56)
    plain = batches(collator, mixture)
    dealt, mixed = (batches(collator, mixture, bucket=16, kind_of=of) for of in (kind_of_steps(mixture), None))
    of_step = {name: [sources_of(mixture, one.indices(step)) for step in range(16)] for name, one in
               (("plain", plain), ("dealt", dealt), ("mixed", mixed))}  # fmt: skip
    assert all(len(set(found)) == 1 for found in of_step["plain"] + of_step["dealt"])
    assert sorted(map(sorted, of_step["dealt"])) == sorted(map(sorted, of_step["plain"]))
    assert any(len(set(found)) == 2 for found in of_step["mixed"])
    seen = [sorted(index for step in range(16) for index in one.indices(step)) for one in (plain, dealt)]
    assert seen[0] == seen[1]
    lengths = [[batches[step].token_mask.numel() for step in range(16)] for batches in (plain, dealt)]
    assert sum(lengths[1]) < 0.8 * sum(lengths[0])
    finite = [WorldSource({"text": 1.0}, seed=seed, image_size=16, pool=200) for seed in range(2)]
    mixture = Mixture(finite, [1, 1], seed=0, together=56)
    kind_of, first = kind_of_steps(mixture), FirstSamples(KeptSource(mixture), 3 * 56)
    assert [kind_of_steps(first)(step) for step in range(9)] == 3 * [kind_of(step) for step in range(3)]
    assert kind_of_steps(sources[0]) is None and kind_of_steps(Mixture(sources, [1, 1], seed=0)) is None


def sources_of(mixture, indices):
    return [mixture.schedule(index // 56)[0] for index in indices]


def test_a_bucketed_sample_is_made_once(collator, monkeypatch):
    source, made = WorldSource({"text": 1.0}, seed=0, image_size=64), []
    sample = source.sample
    monkeypatch.setattr(source, "sample", lambda index: made.append(index) or sample(index))
    dealt = batches(collator, source, bucket=2)
    assert all(dealt[step].tokens is not None for step in range(2))
    assert sorted(made) == list(range(2 * 56))


def test_a_device_normalises_uint8_pixels_to_the_same_bits():
    source = WorldSource({"edit": 1.0}, seed=0, image_size=24)
    collator = Collator(frozenset({"images", "targets"}), image_size=16, vision_size=24)
    samples = [source.sample(number) for number in range(3)]
    whole = collator(samples, [0, 1, 2])
    collator.uint8 = True
    raw = collator(samples, [0, 1, 2])
    assert raw.images.dtype == raw.targets.dtype == torch.uint8
    moved = raw.to(torch.device("cpu"))
    assert torch.equal(moved.images, whole.images) and torch.equal(moved.targets, whole.targets)
    assert torch.equal(whole.to(torch.device("cpu")).images, whole.images)


@pytest.mark.parametrize("num", [2, 4])
def test_a_batch_has_as_many_samples_as_rows(num):
    source = WorldSource({"edit": 1.0}, seed=0, image_size=24)
    collator = Collator(frozenset({"targets"}), image_size=16, vision_size=24)
    with pytest.raises((ValueError, IndexError)):
        collator(map(source.sample, range(num)), [0, 1, 2])

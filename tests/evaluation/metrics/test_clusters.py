import math

import numpy as np
import pytest
from scipy import stats

from kgcli.errors import UsageError
from kgcli.evaluation.metrics.intervals import cluster_mean, expanded_tail, paired, subject_means

NUM_SUBJECTS, NUM_PROMPTS, NUM_IMAGES = 30, 25, 4
TRUTH = 0.69


def benchmark(rng: np.random.Generator) -> np.ndarray:
    """(subjects, prompts, images) with the spreads of DINO scores: subjects vary, prompts less, images least."""
    subjects = rng.normal(0.0, 0.10, (NUM_SUBJECTS, 1, 1))
    both = rng.normal(0.0, 0.06, (NUM_SUBJECTS, NUM_PROMPTS, 1))
    return TRUTH + subjects + both + rng.normal(0.0, 0.06, (NUM_SUBJECTS, NUM_PROMPTS, NUM_IMAGES))


def test_a_prompt_counts_the_same_however_many_images_it_has():
    rows = [("a", 0, 1.0), ("a", 0, 0.0), ("a", 0, 0.5), ("a", 1, 0.9), ("b", 0, 0.2)]
    assert subject_means(rows) == {"a": pytest.approx((0.5 + 0.9) / 2), "b": 0.2}


def test_the_t_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(size=30)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    mean = cluster_mean(list(values))
    assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
    assert mean.bootstrap_low == pytest.approx(mean.low, abs=0.06)
    assert mean.bootstrap_high == pytest.approx(mean.high, abs=0.06)


@pytest.mark.parametrize("means", [[0.3], [0.3, 0.4]])
def test_fewer_than_three_subjects_have_no_interval(means):
    mean = cluster_mean(means)
    assert (mean.low, mean.high, mean.bootstrap_low, mean.bootstrap_high) == (None,) * 4


def test_intervals_stay_inside_the_range():
    mean = cluster_mean([1.0, 1.0, 0.6], (0.0, 1.0))
    assert (mean.high, mean.bootstrap_high) == (1.0, 1.0) and 0.0 <= mean.low < mean.value
    found = paired({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.9}, (0.0, 1.0))
    assert found.high == 1.0 and -1.0 <= found.low < found.value


def test_subjects_cover_the_truth_and_images_do_not():
    """95 % of the t intervals hold the true mean, about a third of those over images do."""
    rng = np.random.default_rng(0)
    covered, num = {"t": 0, "pictures": 0}, 600
    for _ in range(num):
        values = benchmark(rng)
        means = values.mean(axis=(1, 2))
        half = stats.t.ppf(0.975, NUM_SUBJECTS - 1) * means.std(ddof=1) / NUM_SUBJECTS**0.5
        covered["t"] += abs(means.mean() - TRUTH) < half
        half = 1.96 * values.std(ddof=1) / values.size**0.5
        covered["pictures"] += abs(values.mean() - TRUTH) < half
    assert 0.92 < covered["t"] / num < 0.97
    assert 0.15 < covered["pictures"] / num < 0.50


@pytest.mark.parametrize("shape", ["even", "skewed"])
@pytest.mark.parametrize("num", [NUM_SUBJECTS, 9])  # all subjects, and those that live
def test_both_intervals_of_subjects_cover_the_truth(shape, num):
    rng = np.random.default_rng(12)
    draws = {"even": lambda: rng.normal(TRUTH, 0.12, (500, num)), "skewed": lambda: rng.beta(6, 2, (500, num))}
    truth = {"even": TRUTH, "skewed": 0.75}[shape]
    found = [cluster_mean(list(row)) for row in draws[shape]()]
    assert 0.92 < np.mean([one.low < truth < one.high for one in found]) < 0.97
    assert 0.92 < np.mean([one.bootstrap_low < truth < one.bootstrap_high for one in found]) < 0.97


def test_plain_quantiles_of_resampled_subjects_would_be_too_narrow():
    assert expanded_tail(30) == pytest.approx(0.0188, abs=1e-4)
    assert expanded_tail(2) < 1e-6  # nothing but the values themselves
    assert expanded_tail(100_000) == pytest.approx(0.025, abs=1e-4)


def test_paired_subjects_show_what_two_intervals_hide():
    rng = np.random.default_rng(3)
    subjects = rng.normal(0.69, 0.10, 30)
    a = {f"s{i}": value + 0.02 for i, value in enumerate(subjects + rng.normal(0, 0.01, 30))}
    b = {f"s{i}": value for i, value in enumerate(subjects)}
    found = paired(a, b)
    assert found.low > 0 and found.bootstrap_low > 0
    apart = [cluster_mean(list(one.values())) for one in (a, b)]
    assert apart[0].low < apart[1].high  # alone, they overlap
    t = stats.ttest_rel([a[s] for s in sorted(a)], [b[s] for s in sorted(a)]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((t.low, t.high))
    assert math.isclose(found.value, -paired(b, a).value)


def test_equal_runs_differ_by_nothing():
    same = {"a": 0.5, "b": 0.7, "c": 0.1}
    assert (paired(same, same).low, paired(same, same).high) == (0.0, 0.0)


def test_other_subjects_are_not_compared():
    with pytest.raises(UsageError, match="the subjects of the runs differ"):
        paired({"a": 1.0}, {"b": 1.0})

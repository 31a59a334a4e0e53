import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from subject_run import Colours
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from kgcli.evaluation.metrics.distribution import DistributionExtractor, distribution_figures
from kgcli.evaluation.metrics.frechet import Moments, Reference, extrapolate, may_extrapolate
from kgcli.evaluation.metrics.kernels import cmmd, kid, polynomial_mmd
from kgcli.evaluation.metrics.manifolds import manifolds
from kgcli.evaluation.run.real_set import RealSet, real_set

DIM = 24


class Given(torch.nn.Module):
    """Images that are features already."""

    num_features = DIM

    def forward(self, features):
        return features


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(DIM, DIM))
    return rng.normal(size=(500, DIM)) @ mixing + 3, rng.normal(0.2, 1.1, size=(300, DIM)) @ mixing + 3


def test_fid_is_torchmetrics(sets):
    metric = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    for features, real in zip(sets, (True, False), strict=True):
        metric.update(torch.from_numpy(features), real=real)
    ours = Reference(Moments.of(sets[0])).distance(Moments.of(sets[1]))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-8)


def test_fid_is_that_of_the_matrix_root(sets):
    real, fake = (Moments.of(one) for one in sets)
    root = linalg.sqrtm(real.covariance() @ fake.covariance()).real
    trace = np.trace(real.covariance() + fake.covariance() - 2 * root)
    expected = ((real.mean() - fake.mean()) ** 2).sum() + trace
    assert Reference(real).distance(fake) == pytest.approx(expected, rel=1e-8)
    assert Reference(fake).distance(real) == pytest.approx(expected, rel=1e-8)


def test_fid_of_gaussians_with_one_axis_is_known():
    a, b = Moments(1), Moments(1)
    a.add(np.array([[0.0], [2.0]]))  # mean 1, variance 2
    b.add(np.array([[1.0], [7.0]]))  # mean 4, variance 18
    assert Reference(a).distance(b) == pytest.approx(9 + (18**0.5 - 2**0.5) ** 2)


def test_fewer_vectors_than_features_are_no_trouble():
    rng = np.random.default_rng(4)
    few = Moments.of(rng.normal(size=(10, DIM)))
    assert Reference(few).distance(few) == pytest.approx(0, abs=1e-6)


def test_moments_are_those_of_numpy_whatever_the_blocks(sets):
    moments = Moments(DIM)
    for start in range(0, 500, 7):
        moments.add(sets[0][start : start + 7].astype(np.float32))
    rows = sets[0].astype(np.float32).astype(float)
    assert np.allclose(moments.mean(), rows.mean(axis=0), rtol=1e-12)
    assert np.allclose(moments.covariance(), np.cov(rows.T), rtol=1e-9)


def test_extrapolation_takes_the_bias_away():
    """Two sets of one distribution: the distance is 0, and what is measured at N is bias."""
    rng = np.random.default_rng(5)
    reference = Reference(Moments.of(rng.normal(size=(100_000, DIM))))
    fake = rng.normal(size=(1200, DIM))
    measured = reference.distance(Moments.of(fake))
    found = extrapolate(reference, fake)
    assert measured > 0.1
    assert abs(found.value) < 0.2 * measured
    assert found.sizes[-1] == 1200 and found.distances[-1] == pytest.approx(measured)
    assert extrapolate(reference, fake) == found


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save:UserWarning")
def test_kid_is_torchmetrics(sets):
    real, fake = sets[0][:300], sets[1]
    metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=300).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    ours, sd = kid(real, fake, num_subsets=1, subset_size=300)
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-6)
    assert ours == pytest.approx(float(poly_mmd(torch.from_numpy(real), torch.from_numpy(fake))), rel=1e-10)
    assert sd == 0


def test_kid_is_unbiased():
    rng = np.random.default_rng(6)
    values = [polynomial_mmd(rng.normal(size=(40, 8)), rng.normal(size=(40, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5


def test_kid_subsets_are_seeded_and_vary(sets):
    first = kid(*sets, num_subsets=20, subset_size=100)
    assert first == kid(*sets, num_subsets=20, subset_size=100)
    assert first[1] > 0


def test_cmmd_is_the_mean_of_the_whole_kernel(sets):
    real, fake = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in sets)

    def mean(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean()

    expected = 1000 * (mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))
    assert cmmd(real, fake) == pytest.approx(expected, rel=1e-6)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)


def naive_manifolds(real, fake, k):
    """The definitions, one vector at a time."""

    def apart(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    real_radii, fake_radii = (np.sort(apart(one, one), axis=1)[:, k] for one in (real, fake))
    between = apart(real, fake)
    inside = between < real_radii[:, None]
    recalled = (between < fake_radii[None]).any(axis=1)
    return inside.any(axis=0).mean(), recalled.mean(), inside.sum(axis=0).mean() / k, inside.any(axis=1).mean()


@pytest.mark.parametrize(("num", "width", "can"), [(30_000, 2048, True), (5000, 2048, True), (4000, 2048, False)])
def test_sets_too_small_for_their_width_are_not_extrapolated(num, width, can):
    assert may_extrapolate(num, width) is can


def test_what_says_nothing_of_few_images_is_not_shown(sets):
    def figures(num, width=4):
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(num, width)).astype(np.float32)
        real = RealSet(Moments.of(rows), rows, "")
        preset = DistributionExtractor("x", None, None)
        return {one.measure.removesuffix("_x") for one in distribution_figures(preset, real, rows)}

    few = {"fid", "kid", "kid_sd"}
    assert figures(24, 16) == few
    assert figures(24) == few | {"fid_infinity"}
    assert figures(1000) == few | {"fid_infinity", "precision", "recall", "density", "coverage"}


def test_precision_and_recall_are_their_definitions(sets):
    real, fake = sets[0][:150], sets[1][:120]
    found = manifolds(real, fake)
    expected = naive_manifolds(real, fake, 5)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, rel=1e-12)


def test_precision_sees_what_is_off_and_recall_what_is_left_out():
    rng = np.random.default_rng(7)
    real = rng.normal(size=(300, 4))
    narrow = manifolds(real, rng.normal(0, 0.2, size=(300, 4)))
    assert narrow.precision > 0.95 and narrow.recall < 0.3
    far = manifolds(real, rng.normal(20, 1, size=(300, 4)))
    assert far.precision == far.recall == far.density == far.coverage == 0


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(files[-1])
    colours, cache = Colours("colours"), tmp_path / "cache"
    first = real_set(colours, files, cache)
    (kept,) = cache.iterdir()
    left = cache / kept.stem.removeprefix("colours-")
    for again in (True, False):  # killed before the statistics were written, and after
        left.mkdir()
        (left / ".block.partial").write_text("")
        if again:
            kept.unlink()
        assert np.array_equal(real_set(colours, files, cache).sample, first.sample)
        assert list(cache.iterdir()) == [kept]

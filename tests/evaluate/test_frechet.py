import numpy as np
import pytest
import torch

from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate import FewSamplesWarning, FrechetDistance, GaussianMoments, frechet_distance


def samples(seed, count, dimension, mean=0.0, rank=None):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(rank or dimension, dimension))
    return torch.from_numpy(mean + random.normal(size=(count, rank or dimension)) @ mixing)


def moments(vectors, sizes=None):
    gathered = GaussianMoments(vectors.shape[1])
    for part in vectors.split(sizes or len(vectors)):
        gathered.update(part)
    return gathered


def by_eigenvalues_of_the_product(a, b):
    """As the original FID code's formula reads, with the roots of S1 S2's own eigenvalues (not symmetric)."""
    x, y = a.numpy(), b.numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * roots.sum()


def by_newton_iteration(a, b):
    """With the root of S1 S2 by the product form of Denman and Beavers' iteration: no eigenvalues at all."""
    x, y = a.numpy(), b.numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root, inverse = first @ second, np.eye(len(first))
    step = np.inf
    # It converges quadratically, so that a step of 1e-7 leaves an error of about 1e-14; iterated any longer, it lets
    # rounding errors grow until the root is lost again (Higham, "Newton's method for the matrix square root", 1986).
    while step > 1e-7:
        following = (root + np.linalg.inv(inverse)) / 2
        step = np.linalg.norm(following - root) / np.linalg.norm(following)
        root, inverse = following, (inverse + np.linalg.inv(root)) / 2
    assert np.allclose(root @ root, first @ second, rtol=1e-8)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)


@pytest.mark.parametrize("dimension", [1, 2, 9, 40])
def test_agrees_with_independent_formulas(dimension):
    a, b = samples(1, 300, dimension, mean=0.4), samples(2, 200, dimension)
    distance = frechet_distance(moments(a), moments(b))
    if dimension == 1:  # (mu1 - mu2)^2 + (sigma1 - sigma2)^2
        expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
        assert distance == pytest.approx(expected.item(), rel=1e-10)
    else:
        assert distance == pytest.approx(by_eigenvalues_of_the_product(a, b), rel=1e-8)
        assert distance == pytest.approx(by_newton_iteration(a, b), rel=1e-6)
    assert distance == pytest.approx(frechet_distance(moments(b), moments(a)), rel=1e-9)


def test_of_diagonal_covariances():
    # Six vectors, two of them at +-w on each axis, have the covariance diag(2 w^2 / (6 - 1)).
    scales, others = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([3.0, 2.0, 1.0]).double()

    def cross(widths):
        return moments(torch.cat([torch.diag(widths), -torch.diag(widths)]))

    expected = 2.0 / 5.0 * (scales - others).square().sum()
    assert frechet_distance(cross(scales), cross(others)) == pytest.approx(expected.item(), abs=1e-12)


def test_singular_covariances_are_no_trouble():
    a, b = samples(3, 15, 40), samples(4, 500, 40, rank=6)  # ranks 14 and 6
    distance = frechet_distance(moments(a), moments(b))
    assert distance == pytest.approx(by_eigenvalues_of_the_product(a, b), rel=1e-5)
    constant = torch.ones(9, 40, dtype=torch.float64)
    assert frechet_distance(moments(constant), moments(constant + 2.0)) == pytest.approx(160.0, rel=1e-12)


def test_zero_for_the_same_set_and_grows_with_a_shift():
    a = samples(5, 400, 30)
    assert frechet_distance(moments(a), moments(a.flip(0))) == pytest.approx(0.0, abs=1e-9)
    shifted = [frechet_distance(moments(a), moments(a + shift)) for shift in (0.1, 0.5, 1.0, 3.0)]
    assert shifted == pytest.approx([30 * shift**2 for shift in (0.1, 0.5, 1.0, 3.0)], rel=1e-7)
    spread = [frechet_distance(moments(a), moments(a * factor)) for factor in (1.1, 1.5, 2.0)]
    assert spread == sorted(spread)


@pytest.mark.parametrize("sizes", [1, 7, 100, [3, 90, 1, 6]])
def test_moments_do_not_depend_on_batches_or_order(sizes):
    # A mean of 1e6 beside deviations of about 1: sums of squares would keep four digits of the covariance.
    vectors = samples(6, 100, 5, mean=1e6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(100))
    streamed = moments(vectors[order], sizes)
    assert streamed.count == 100
    np.testing.assert_allclose(streamed.mean, vectors.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(vectors.numpy(), rowvar=False), rtol=1e-9)


def test_moments_refuse_bad_vectors():
    gathered = GaussianMoments(3)
    gathered.update(torch.zeros(0, 3))
    assert gathered.count == 0
    with pytest.raises(ArgumentError, match="wrong shape"):
        gathered.update(torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="NaN"):
        gathered.update(torch.tensor([[0.0, torch.nan, 0.0]]))
    gathered.update(torch.ones(1, 3))
    with pytest.raises(ArgumentError, match="1 vectors of 3 dimensions"):
        _ = gathered.covariance
    with pytest.raises(ArgumentError, match="different dimensions"):
        frechet_distance(moments(samples(0, 5, 3)), moments(samples(0, 5, 4)))


class Brightness:
    """Mean of each colour channel."""

    name = "brightness"
    dimension = 3

    def __call__(self, images):
        return images.double().mean(dim=(1, 2))


def test_distances_between_named_sets():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (20, 4, 6, 3), dtype=np.uint8))
    distance = FrechetDistance(Brightness())
    for part in images.split((7, 12, 1)):
        distance.update("a", part)
        distance.update("brighter", part + 10)
    assert distance.moments("a").count == 20
    assert distance.between("a", "a") == pytest.approx(0.0, abs=1e-9)
    assert distance.between("a", "brighter") == pytest.approx(300.0, rel=1e-9)
    with pytest.raises(ArgumentError, match="0 vectors"), pytest.warns(FewSamplesWarning):
        distance.between("a", "none")


def test_few_samples_are_warned_about_once_with_both_numbers():
    distance = FrechetDistance(Brightness())
    distance.update("few", torch.eye(3).mul(255).to(torch.uint8)[:, None, None])
    distance.update("also few", torch.eye(3).mul(9).to(torch.uint8)[:, None, None])
    with pytest.warns(FewSamplesWarning, match="3 images for 3 dimensions"):
        value = distance.between("few", "also few")
    assert distance.between("also few", "few") == pytest.approx(value)  # a second warning would be an error here

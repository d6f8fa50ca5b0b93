"""The Fréchet distance against closed forms and against scipy; statistics against numpy's."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vqgan.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    merge_statistics,
    no_statistics,
)


def gaussian(mean: list[float], covariance: np.ndarray) -> FeatureStatistics:
    """Statistics with these moments exactly."""
    return FeatureStatistics(11, np.array(mean), covariance * 10)


def sample(count: int, dimension: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dimension, dimension))
    return rng.standard_normal((count, dimension)) @ mixing + rng.standard_normal(dimension)


def test_statistics_are_numpys() -> None:
    features = sample(40, 5, seed=0)
    statistics = feature_statistics(features.astype(np.float32))
    assert (statistics.count, statistics.dimension, statistics.covariance.dtype) == (40, 5, np.float64)
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-4, atol=1e-5)


def test_merged_parts_are_the_whole() -> None:
    features = sample(50, 4, seed=1)
    whole = feature_statistics(features)
    parts = [feature_statistics(part) for part in np.split(features, [0, 1, 2, 20, 45])]
    assert [part.count for part in parts] == [0, 1, 1, 18, 25, 5]
    forth = back = no_statistics(4)
    for part in parts:
        forth = merge_statistics(forth, part)
    for part in reversed(parts):
        back = merge_statistics(part, back)
    for merged in (forth, back):
        assert merged.count == 50
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-11)


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    features = np.arange(12.0).reshape(12, 1) / 8  # exact in float64, also after the shift
    near, far = no_statistics(1), no_statistics(1)
    for start in range(0, 12, 5):
        near = merge_statistics(near, feature_statistics(features[start : start + 5]))
        far = merge_statistics(far, feature_statistics(features[start : start + 5] + 2.0**40))
    assert near.covariance.item() == pytest.approx(13 / 64, rel=1e-12)  # (n^2 + n) / 12 of spacing 1/8
    assert far.covariance.item() == pytest.approx(13 / 64, rel=1e-3)


def test_in_one_dimension() -> None:
    """``(m - n)^2 + (s - t)^2`` for standard deviations s and t."""
    a, b = gaussian([3], np.array([[25.0]])), gaussian([-1], np.array([[4.0]]))
    assert frechet_distance(a, b) == pytest.approx(16 + 9, rel=1e-12)


def test_of_diagonal_covariances() -> None:
    a = gaussian([0, 1, 2], np.diag([1.0, 9.0, 0.0]))
    b = gaussian([2, 1, 2], np.diag([4.0, 1.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 4 + 16, rel=1e-12)


def test_of_covariances_that_do_not_commute() -> None:
    """In two dimensions ``tr sqrt(S T) = sqrt(tr(S T) + 2 sqrt(det S det T))``."""
    s, t = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    assert not np.allclose(s @ t, t @ s)
    overlap = np.sqrt(9 + 2 * np.sqrt(5 * 1))
    expected = 1 + 5 + 6 - 2 * overlap
    assert frechet_distance(gaussian([0, 0], s), gaussian([1, 0], t)) == pytest.approx(expected, rel=1e-12)


def test_agrees_with_scipy() -> None:
    a, b = (feature_statistics(sample(200, 12, seed)) for seed in (2, 3))
    root = sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_fewer_features_than_dimensions() -> None:
    """Both covariances are singular. The distance is then known from the features' own inner products."""
    x, y = sample(6, 40, seed=4), sample(9, 40, seed=5)
    a, b = feature_statistics(x), feature_statistics(y)
    deviations = [(part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (x, y)]
    overlap = np.linalg.svd(deviations[0] @ deviations[1].T, compute_uv=False).sum()
    traces = sum(np.sum(part**2) for part in deviations)
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + traces - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 6, 300])
def test_of_a_set_with_itself(count: int) -> None:
    statistics = feature_statistics(sample(count, 30, seed=6))
    assert 0 <= frechet_distance(statistics, statistics) < 1e-9 * np.trace(statistics.covariance)


def test_of_constant_features() -> None:
    a, b = (feature_statistics(np.full((3, 4), value)) for value in (1.0, 3.0))
    assert frechet_distance(a, b) == 16
    assert frechet_distance(a, a) == 0


def test_what_cannot_be_compared() -> None:
    one, two = feature_statistics(np.ones((1, 3))), feature_statistics(np.ones((2, 3)))
    with pytest.raises(ValueError, match="at least 2 features, there are 1"):
        frechet_distance(one, two)
    other = feature_statistics(np.ones((2, 4)))
    with pytest.raises(ValueError, match="length 3 and 4"):
        frechet_distance(two, other)
    with pytest.raises(ValueError, match="length 3 and 4"):
        merge_statistics(two, other)
    with pytest.raises(ValueError, match="must be finite"):
        feature_statistics(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        feature_statistics(np.ones(3))

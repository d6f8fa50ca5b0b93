"""Fréchet distance between two sets of features: mean and covariance by streaming, then one formula.

It is FID (arXiv 1706.08500) only if the features are those of the Inception network that FID is defined
by. Over the features of another network it is a metric of its own, with values of its own.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and scatter of features, in float64; parts of a set can be merged in any order.

    Attributes:
      count: number of features.
      mean: ``[D]``.
      scatter: ``[D, D]``, the sum of the outer products of deviations from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``[D, D]``, divided by the count less one.

        Raises:
          ValueError: there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, there are {self.count}")
        return self.scatter / (self.count - 1)


def no_statistics(dimension: int) -> FeatureStatistics:
    """Returns the statistics of no features at all, to merge others into."""
    return FeatureStatistics(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Computes the statistics of features ``[N, D]``, any N.

    Raises:
      ValueError: another shape, or a value that is not finite.
    """
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be finite numbers [N, D], got {features.dtype} {features.shape}")
    if not len(features):
        return no_statistics(features.shape[1])
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    deviations = values - mean
    return FeatureStatistics(len(values), mean, deviations.T @ deviations)


def merge_statistics(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Merges the statistics of two sets, after Chan, Golub and LeVeque (Stanford CS-TR-79-773, 1979).

    Sums of squared deviations keep the digits that sums of squares would lose.

    Raises:
      ValueError: features of different lengths.
    """
    if a.dimension != b.dimension:
        raise ValueError(f"features of length {a.dimension} and {b.dimension} do not go together")
    count = a.count + b.count
    if not count:
        return a
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.count / count)
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return FeatureStatistics(count, mean, scatter)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Computes the squared Fréchet distance of the Gaussians with these moments.

    ``|m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))`` (Dowson and Landau 1982; arXiv
    1706.08500, equation 6). The last trace is that of ``(S_a^(1/2) S_b S_a^(1/2))^(1/2)``, the sum of
    the singular values of ``S_a^(1/2) S_b^(1/2)``. Both roots come from eigenvalues of symmetric
    matrices, so singular covariances, as fewer features than dimensions give, need no special case.

    Args:
      a: statistics of at least two features.
      b: the same length of features.

    Returns:
      At least 0. With few features it is biased: it depends on their number.

    Raises:
      ValueError: features of different lengths, or fewer than two.
    """
    if a.dimension != b.dimension:
        raise ValueError(f"features of length {a.dimension} and {b.dimension} cannot be compared")
    covariance_a, covariance_b = a.covariance, b.covariance
    roots = _root(covariance_a) @ _root(covariance_b)
    overlap = np.linalg.svd(roots, compute_uv=False).sum()
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + spread))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns the symmetric root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    # Eigenvalues that are zero come out as rounding errors of either sign, whose roots would be large.
    noise = len(values) * np.finfo(np.float64).eps * max(0.0, values[-1])
    kept = np.where(values > noise, values, 0.0)
    root: np.ndarray = (vectors * np.sqrt(kept)) @ vectors.T
    return root

"""Where tokens are: coordinates on the grid, and rotary embeddings of them."""

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.prior.config import PriorConfig

BASE = 10_000.0
START = (-1.0, -1.0)
"""Coordinates of the start token: outside the grid."""


def coordinates(config: PriorConfig) -> np.ndarray:
    """Row and column of every position of the sequence, in units of the token grid.

    The condition's tokens lie over the picture that they describe: where its grid is coarser or finer,
    its cells' centres are scaled to the token grid.

    Returns:
      float32 ``[P + L, 2]``.
    """
    parts = [np.array([START], np.float32), _cells(config.grid, config.grid)]
    if config.condition_length:
        parts.insert(0, _cells(config.condition_grid, config.grid))
    return np.concatenate(parts)


def _cells(grid: tuple[int, int], onto: tuple[int, int]) -> np.ndarray:
    """Centres of a grid's cells in raster order, where the cells of ``onto`` are at whole numbers."""
    axes = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid, onto, strict=True)]
    rows, columns = np.meshgrid(*axes, indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=-1).astype(np.float32)  # (h * w, 2)


def rotary_table(config: PriorConfig) -> np.ndarray:
    """Angles of rotary positions (RoFormer, arXiv 2104.09864) in two dimensions.

    Half of a head's pairs of features turn with the row, the other half with the column, each at
    frequencies ``BASE ** (-k / n)``.

    Returns:
      float32 ``[P + L, head_width / 2]``.
    """
    count = config.head_width // 4
    frequencies = BASE ** (-np.arange(count, dtype=np.float32) / count)
    angles = coordinates(config)[:, :, None] * frequencies  # (P + L, 2, head_width / 4)
    return angles.reshape(len(angles), -1)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs ``(x[k], x[k + D/2])`` of features by the angles of their positions.

    Args:
      x: ``[B, T, H, D]``.
      angles: ``[T, D / 2]``.

    Returns:
      The shape and type of ``x``; computed in float32.
    """
    cos, sin = (jnp.broadcast_to(f(angles)[None, :, None], (*x.shape[:-1], x.shape[-1] // 2))
                for f in (jnp.cos, jnp.sin))  # fmt: skip
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)

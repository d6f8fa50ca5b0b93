"""Masks over the tokens of a grid: schedules of how many are hidden, and choices of where.

The schedules are those of MaskGIT (arXiv 2202.04200, section 3.3): concave ones hide most tokens for
long, so that the first ones are chosen with care.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

A = TypeVar("A", np.ndarray, jax.Array)

EXPONENTS = {"linear": 1, "square": 2, "cubic": 3}
ROUNDING = 1e-9  # added to a number that is rounded down: 10 * (1 - 0.9) is 1


def mask_ratio(schedule: str, progress: A) -> A:
    """Returns the share of tokens that are hidden, falling from 1 at progress 0 to 0 at progress 1.

    Args:
      schedule: one of :data:`vqgan.prior.config.MASK_SCHEDULES`.
      progress: in [0, 1], any shape; of NumPy or JAX, as is the result.
    """
    if schedule == "cosine":
        return progress.__array_namespace__().cos(0.5 * math.pi * progress)
    return 1 - progress ** EXPONENTS[schedule]


def training_mask_counts(schedule: str, progress: jax.Array, length: int) -> jax.Array:
    """Returns the number of hidden tokens, rounded up, so that there is at least one to learn from.

    Args:
      schedule: as for :func:`mask_ratio`.
      progress: ``[B]`` in [0, 1).
      length: tokens of a grid, L.

    Returns:
      int32 ``[B]`` in [1, L].
    """
    counts = jnp.ceil(mask_ratio(schedule, progress) * length)
    return jnp.clip(counts, 1, length).astype(jnp.int32)


def decoding_mask_counts(schedule: str, unknown: np.ndarray, steps: int) -> np.ndarray:
    """Returns the number of tokens that are still hidden after each step of parallel decoding.

    The schedule's share of the tokens that were unknown at first, rounded down, but at least one token is
    filled in at each step while there are any, and all are at the last one (arXiv 2202.04200, section 3.2).

    Args:
      schedule: as for :func:`mask_ratio`.
      unknown: ``[B]`` tokens of each sample that are not given.
      steps: passes of the prior.

    Returns:
      int32 ``[steps, B]``.
    """
    step = np.arange(1, steps + 1)
    shares = mask_ratio(schedule, step / steps)
    planned = np.floor(shares[:, None] * unknown[None] + ROUNDING)  # (steps, B)
    slowest = unknown[None] - step[:, None]  # one token a step
    counts = np.maximum(np.minimum(planned, slowest), 0).astype(np.int32)
    counts[-1] = 0
    return counts


def lowest_mask(scores: jax.Array, counts: jax.Array) -> jax.Array:
    """Marks the lowest scores of each row; of equal ones, those that come first.

    Args:
      scores: ``[B, L]``.
      counts: int32 ``[B]``, how many to mark.

    Returns:
      bool ``[B, L]``, with ``counts`` true values in each row.
    """
    rank = jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)  # (B, L), of each score in its row
    return rank < counts[:, None]


def random_mask(keys: jax.Array, counts: jax.Array, length: int) -> jax.Array:
    """Marks random places of each row, by the row's own key.

    Args:
      keys: ``[B]`` random keys.
      counts: int32 ``[B]``, how many to mark.
      length: places in a row, L.

    Returns:
      bool ``[B, L]``.
    """
    return lowest_mask(jax.vmap(lambda key: jax.random.uniform(key, (length,), jnp.float32))(keys), counts)

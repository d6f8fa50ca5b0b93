"""Digits to one number and back, for quantizers whose codes are a grid. Digit 0 counts least."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def join_digits(digits: jax.Array, levels: Sequence[int]) -> jax.Array:
    """``[..., D]`` integers, digit i in ``[0, levels[i])``, to ``[...]`` int32 below the levels' product."""
    places = last_axis(_places(levels), digits.ndim, jnp.int32)
    return jnp.sum(digits.astype(jnp.int32) * places, axis=-1, dtype=jnp.int32)


def split_digits(tokens: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The digits ``[..., D]`` int32 of ``[...]`` numbers; undoes :func:`join_digits`."""
    rank = tokens.ndim + 1
    places, bases = (last_axis(values, rank, jnp.int32) for values in (_places(levels), levels))
    return tokens.astype(jnp.int32)[..., None] // places % bases


def _places(levels: Sequence[int]) -> list[int]:
    """What one unit of each digit is worth."""
    return [math.prod(levels[:index]) for index in range(len(levels))]


def last_axis(values: Sequence[float] | np.ndarray, rank: int, dtype: DTypeLike) -> jax.Array:
    """``[D]`` values as ``[1, ..., 1, D]``, to go with an array of ``rank`` axes."""
    return jnp.asarray(np.reshape(values, (1,) * (rank - 1) + (-1,)), dtype)

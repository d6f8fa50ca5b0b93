"""Spectral normalisation: a kernel divided by its largest singular value (arXiv 1802.05957)."""

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-12


class SpectralNorm(nnx.Module):
    """Estimates the largest singular value of one kernel by power iteration (algorithm 1 of the paper).

    A kernel counts as a matrix of all its inputs (height, width and channels) by its output channels.
    The vector that the iteration starts from is kept from call to call in a ``BatchStat``, so it is no
    parameter. In training mode each call goes one round further; after ``eval()`` it stays as it is.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        start = jax.random.normal(rngs.params(), (channels,), jnp.float32)
        self.vector = nnx.BatchStat(_unit(start))
        self.deterministic = False  # set by train() and eval()

    def __call__(self, kernel: jax.Array) -> jax.Array:
        """``[..., C]`` kernel to the same, divided by its norm. Gradients go through the norm."""
        matrix = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])  # (inputs, C)
        right = self.vector[...]  # (C,)
        left, moved = _power_iteration(jax.lax.stop_gradient(matrix), right)
        if not self.deterministic:
            right = self.vector[...] = moved
        norm = _dot(left, _dot(matrix, right))
        return kernel / (norm + EPSILON)


def _power_iteration(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One round: the left singular vector ``[inputs]`` of ``right``, and the right one ``[C]`` of that."""
    left = _unit(_dot(matrix, right))
    return left, _unit(_dot(matrix.T, left))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators multiply in TF32 by default, whose error would be that of every kernel's size.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + EPSILON)

"""Spectral normalisation against numpy's singular values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.discriminators.patch import DiscriminatorConv, SpectralNorm

# A constant stands out among the singular values, so that few rounds find it.
KERNEL = np.random.default_rng(1).standard_normal((3, 3, 4, 6)).astype(np.float32) + 1


def largest(kernel: Any) -> float:
    return float(np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))[1][0])


@nnx.jit
def normalise(norm: SpectralNorm, kernel: jax.Array) -> jax.Array:
    return norm(kernel)


def converged(kernel: np.ndarray) -> SpectralNorm:
    norm = SpectralNorm(kernel.shape[-1], rngs=nnx.Rngs(0))
    for _ in range(20):
        normalise(norm, jnp.asarray(kernel))
    return norm


def test_the_largest_singular_value_becomes_one() -> None:
    assert largest(KERNEL) > 10
    norm = converged(KERNEL)
    result = normalise(norm, jnp.asarray(KERNEL))
    np.testing.assert_allclose(largest(result), 1, rtol=1e-4)
    np.testing.assert_allclose(result, KERNEL / largest(KERNEL), rtol=1e-4)


def test_one_round_per_call() -> None:
    """The first two rounds, by numpy."""
    norm = SpectralNorm(6, rngs=nnx.Rngs(0))
    matrix = KERNEL.reshape(-1, 6).astype(np.float64)
    right = np.asarray(norm.vector[...], np.float64)
    for _ in range(2):
        result = norm(jnp.asarray(KERNEL))
        left = matrix @ right / np.linalg.norm(matrix @ right)
        right = matrix.T @ left / np.linalg.norm(matrix.T @ left)
        np.testing.assert_allclose(norm.vector[...], right, rtol=1e-5)
        np.testing.assert_allclose(result, KERNEL / (left @ matrix @ right), rtol=1e-5)


def test_the_vector_stays_after_eval() -> None:
    norm = converged(KERNEL)
    norm.eval()
    before = np.asarray(norm.vector[...])
    twice = jnp.asarray(2 * KERNEL[::-1])  # other singular vectors: a round would move it
    normalise(norm, twice)
    np.testing.assert_array_equal(norm.vector[...], before)
    np.testing.assert_allclose(largest(normalise(norm, jnp.asarray(KERNEL))), 1, rtol=1e-4)
    norm.train()
    normalise(norm, twice)
    assert not np.array_equal(norm.vector[...], before)


def test_gradients_go_through_the_norm() -> None:
    """The result does not depend on the kernel's size, so no gradient points along the kernel."""
    norm = converged(KERNEL)
    norm.eval()
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(KERNEL.shape), jnp.float32)
    gradient = jax.grad(lambda kernel: jnp.sum(norm(kernel) * weights))(jnp.asarray(KERNEL))
    assert jnp.linalg.norm(gradient) > 0.1
    np.testing.assert_allclose(jnp.sum(gradient * KERNEL), 0, atol=1e-4)


def test_a_convolution_uses_the_normalised_kernel() -> None:
    """A 1x1 kernel 3 becomes 1; the bias is left alone."""
    conv = DiscriminatorConv(
        1,
        1,
        1,
        kernel_init=nnx.initializers.constant(3.0),
        spectral_norm=True,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    conv.bias[...] = jnp.array([0.5])
    np.testing.assert_allclose(conv(jnp.full((1, 2, 2, 1), 4.0)), np.full((1, 2, 2, 1), 4.5), rtol=1e-6)


@pytest.mark.parametrize("kind", ["patch", "stylegan"])
def test_every_kernel_of_a_discriminator(
    kind: str, build: Callable[..., Any], forward: Callable[..., jax.Array]
) -> None:
    """Forward passes alone find the norm of each kernel: that of its product with the vector."""
    config = DiscriminatorConfig(kind=kind, channels=4, layers=1, resolution=8, spectral_norm=True)
    model = build(config)
    for _ in range(60):
        forward(model, jnp.zeros((1, 8, 8, 3)))
    convs = [module for _, module in nnx.iter_modules(model) if isinstance(module, DiscriminatorConv)]
    assert len(convs) == {"patch": 3, "stylegan": 7}[kind]
    for conv in convs:
        kernel, vector = np.asarray(conv.kernel[...]), np.asarray(conv.spectral.vector[...])
        found = np.linalg.norm(kernel.reshape(-1, len(vector)) @ vector)
        np.testing.assert_allclose(found, largest(kernel), rtol=0.02)


@pytest.mark.parametrize("kind", ["patch", "stylegan"])
def test_vectors_are_no_parameters(kind: str) -> None:
    """Nor is there a BatchNorm, whose scale would undo the bound."""
    config = DiscriminatorConfig(kind=kind, channels=4, layers=2, resolution=8, spectral_norm=True)
    model = nnx.eval_shape(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
    kinds = {str(path[-1]): type(leaf) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert kinds == {"kernel": nnx.Param, "bias": nnx.Param, "vector": nnx.BatchStat}

"""Only directions count: of latents, of codes, in tokens, codes and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.quantizers import CosineQuantizer, QuantizeOptions


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def quantizer() -> CosineQuantizer:
    quantizer = CosineQuantizer(8, 4, rngs=nnx.Rngs(0))
    quantizer.codebook[...] = jnp.asarray(normal(8, 4, seed=5) * np.arange(1, 9)[:, None], jnp.float32)
    return quantizer


def test_tokens_and_losses_are_those_of_unit_vectors(quantizer: CosineQuantizer) -> None:
    latents, codebook = normal(2, 3, 5, 4), unit(np.asarray(quantizer.codebook[...]))
    expected = (unit(latents) @ codebook.T).argmax(axis=-1)
    result = quantizer(jnp.asarray(latents))
    np.testing.assert_array_equal(result.tokens, expected)
    np.testing.assert_array_equal(quantizer.tokens(jnp.asarray(latents)), expected)
    np.testing.assert_allclose(result.codes, codebook[expected], atol=1e-6)
    np.testing.assert_allclose(quantizer.lookup(result.tokens), codebook[expected], atol=1e-6)
    mse = np.mean((codebook[expected] - unit(latents)) ** 2)
    np.testing.assert_allclose([result.codebook_loss, result.commitment_loss], mse, rtol=1e-5)


def test_lengths_change_nothing(quantizer: CosineQuantizer) -> None:
    latents = jnp.asarray(normal(1, 4, 4, 4))
    before = quantizer(latents)
    quantizer.codebook[...] = quantizer.codebook[...] * jnp.arange(1.0, 9.0)[:, None]
    after = quantizer(7 * latents)
    np.testing.assert_array_equal(after.tokens, before.tokens)
    np.testing.assert_allclose(after.codebook_loss, before.codebook_loss, rtol=1e-5)


def test_gradient_is_the_identity_up_to_the_normalised_latents(quantizer: CosineQuantizer) -> None:
    """Of ``z / |z|`` the Jacobian is ``(I - u u^T) / |z|``."""
    latents, weights = normal(1, 3, 2, 4), normal(1, 3, 2, 4, seed=3)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(weights * quantizer(z).codes)))(jnp.asarray(latents))
    u = unit(latents)
    tangent = weights - u * (u * weights).sum(axis=-1, keepdims=True)
    expected = tangent / np.linalg.norm(latents, axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_rotation_gives_the_codes(quantizer: CosineQuantizer) -> None:
    latents = jnp.asarray(normal(1, 3, 2, 4))
    result = quantizer(latents, QuantizeOptions(rotation=True))
    np.testing.assert_allclose(result.codes, quantizer.lookup(result.tokens), atol=1e-6)


def test_a_latent_of_zero_has_a_finite_gradient(quantizer: CosineQuantizer) -> None:
    gradient = jax.jit(jax.grad(lambda z: quantizer(z).commitment_loss))(jnp.zeros((1, 1, 1, 4)))
    assert np.isfinite(gradient).all()

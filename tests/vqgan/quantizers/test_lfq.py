"""Signs as bits: their order, whole codebooks, gradient and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.losses import bit_entropy_loss
from vqgan.quantizers import LFQQuantizer, QuantizeOptions


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("latents", "token"),
    [
        ([-1, -1, -1], 0),
        ([0.1, -9, -0.1], 1),
        ([-2, 3, -4], 2),
        ([-2, -3, 4], 4),
        ([1, 1, 1], 7),
        ([0, 0, 1], 4),
    ],
)
def test_bit_zero_is_dimension_zero(latents: list[float], token: int) -> None:
    quantizer = LFQQuantizer(3)
    result = quantizer(jnp.array([[[latents]]], jnp.float32))
    assert result.tokens.tolist() == [[[token]]]
    expected = np.where(np.array(latents) > 0, 1.0, -1.0)
    np.testing.assert_array_equal(quantizer.lookup(result.tokens)[0, 0, 0], expected)
    np.testing.assert_allclose(result.codes[0, 0, 0], expected, atol=1e-6)


@given(st.integers(1, 10))
@settings(max_examples=6)
def test_whole_codebook_there_and_back(bits: int) -> None:
    quantizer = LFQQuantizer(bits)
    tokens = np.arange(2**bits)
    codes = np.asarray(jax.jit(quantizer.lookup)(tokens[None, None, :]))
    written = [f"{token:0{bits}b}"[::-1] for token in tokens]  # the lowest bit first
    np.testing.assert_array_equal(codes[0, 0], [[2.0 * int(bit) - 1 for bit in bits] for bits in written])
    np.testing.assert_array_equal(jax.jit(quantizer.tokens)(codes)[0, 0], tokens)


def test_the_largest_token_fits_its_type() -> None:
    tokens = LFQQuantizer(31).tokens(jnp.ones((1, 1, 1, 31)))
    assert int(tokens[0, 0, 0]) == 2**31 - 1
    assert np.all(LFQQuantizer(31).lookup(tokens) == 1)


def test_straight_through_gradient_is_the_identity() -> None:
    latents, weights = jnp.asarray(normal(2, 3, 2, 4)), jnp.asarray(normal(2, 3, 2, 4, seed=1))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(weights * LFQQuantizer(4)(z).codes)))(latents)
    np.testing.assert_array_equal(gradient, weights)


def test_losses() -> None:
    """Commitment by hand: ((1 - 0.5)^2 + (-1 + 3)^2) / 2."""
    quantizer = LFQQuantizer(2)
    result = quantizer(jnp.array([[[[0.5, -3.0]]]]))
    np.testing.assert_allclose(result.commitment_loss, 2.125, rtol=1e-6)
    assert result.codebook_loss == result.entropy_loss == 0
    gradient = jax.jit(jax.grad(lambda z: quantizer(z).commitment_loss))(jnp.array([[[[0.5, -3.0]]]]))
    np.testing.assert_allclose(gradient, [[[[-0.5, -2.0]]]], rtol=1e-6)


def test_entropy_loss_is_that_of_the_bits() -> None:
    latents = jnp.asarray(normal(2, 3, 2, 4))
    found = LFQQuantizer(4)(latents, QuantizeOptions(entropy_temperature=0.5)).entropy_loss
    np.testing.assert_array_equal(found, bit_entropy_loss(latents.reshape(-1, 4), 0.5))
    assert found < -0.1

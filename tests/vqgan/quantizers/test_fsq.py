"""Rounding to levels: by hand, over whole codebooks, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.quantizers import FSQQuantizer, QuantizeOptions
from vqgan.quantizers.lookup_free import join_digits, split_digits

levels_of_codebooks = st.lists(st.integers(2, 7), min_size=1, max_size=4).map(tuple)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("latents", "token", "code"),
    [
        ([0.0, 0.0], 1 + 3 * 2, [0.0, 0.0]),
        ([9.0, -9.0], 2 + 3 * 0, [1.0, -1.0]),
        ([-9.0, 9.0], 0 + 3 * 3, [-1.0, 0.5]),
        ([0.5, -0.6], 1 + 3 * 1, [0.0, -0.5]),  # tanh(0.5) = 0.46; 1.5 tanh(0.35 - 0.6) - 0.5 = -0.87
        ([0.6, 0.7], 2 + 3 * 3, [1.0, 0.5]),  # tanh(0.6) = 0.54; 1.5 tanh(0.35 + 0.7) - 0.5 = 0.67
    ],
)
def test_three_by_four_levels_by_hand(latents: list[float], token: int, code: list[float]) -> None:
    quantizer = FSQQuantizer((3, 4))
    result = quantizer(jnp.array([[[latents]]]))
    assert result.tokens.tolist() == quantizer.tokens(jnp.array([[[latents]]])).tolist() == [[[token]]]
    np.testing.assert_allclose(result.codes, [[[code]]], atol=1e-6)
    np.testing.assert_array_equal(quantizer.lookup(result.tokens), [[[code]]])


@given(levels_of_codebooks)
@settings(max_examples=8)
def test_tokens_number_the_whole_codebook(levels: tuple[int, ...]) -> None:
    """Digits in NumPy's own way (Fortran order: the first index runs fastest) and back."""
    tokens = np.arange(np.prod(levels))
    digits = np.stack(np.unravel_index(tokens, levels, order="F"), axis=-1)
    found, codes = jax.jit(lambda t: (split_digits(t, levels), FSQQuantizer(levels).lookup(t)))(tokens)
    np.testing.assert_array_equal(found, digits)
    np.testing.assert_array_equal(jax.jit(lambda d: join_digits(d, levels))(digits), tokens)
    codes = np.asarray(codes)
    halves = np.array(levels) // 2
    np.testing.assert_allclose(codes * halves + halves, digits, atol=1e-5)
    assert len(np.unique(codes, axis=0)) == len(tokens)
    assert np.abs(codes).max() <= 1


@given(levels_of_codebooks)
@settings(max_examples=8)
def test_every_code_is_reached_and_comes_back(levels: tuple[int, ...]) -> None:
    """Latents from the middle of each cell, by the inverse of the bound."""
    quantizer = FSQQuantizer(levels)
    tokens = np.arange(np.prod(levels))[None, None, :]
    codes = np.asarray(jax.jit(quantizer.lookup)(tokens))
    odd = np.array(levels) % 2
    scale = (np.array(levels) - 1) * 0.999 / 2
    offset = np.where(odd, 0.0, 0.5)
    rounded = codes.astype(np.float64) * (np.array(levels) // 2)
    middle = np.clip((rounded + offset) / scale, -0.9999, 0.9999)
    latents = jnp.asarray(np.arctanh(middle) - np.tan(offset / scale), jnp.float32)
    result = jax.jit(quantizer)(latents)
    np.testing.assert_array_equal(result.tokens, tokens)
    np.testing.assert_allclose(result.codes, codes, atol=1e-6)


def test_gradient_is_that_of_the_bound() -> None:
    """As without the rounding: the derivative of ``tanh(z + shift) * scale`` over ``L // 2``."""
    latents, weights, levels = normal(2, 3, 2, 3), normal(2, 3, 2, 3, seed=1), np.array([3, 4, 8])
    quantizer = FSQQuantizer(levels.tolist())
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(weights * quantizer(z).codes)))(jnp.asarray(latents))
    scale = (levels - 1) * 0.999 / 2
    shift = np.tan(np.array([0, 0.5, 0.5]) / scale)
    expected = weights * scale / np.cosh(latents + shift) ** 2 / (levels // 2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_there_is_no_loss() -> None:
    result = FSQQuantizer((3, 4))(jnp.asarray(normal(1, 2, 2, 2)), QuantizeOptions(entropy_temperature=1.0))
    assert [float(loss) for loss in result[2:]] == [0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tokens_stay_in_range(value: float) -> None:
    tokens = FSQQuantizer((3, 4)).tokens(jnp.full((1, 1, 1, 2), value))
    assert 0 <= int(tokens[0, 0, 0]) < 12

"""The nearest code is the nearest code, however it is computed, and gradients take their two ways."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.quantizers import NearestQuantizer, nearest
from vqgan.quantizers.nearest import nearest_code

Products = Callable[[Any], list[Any]]


def distances(latents: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    difference = latents.astype(np.float64)[:, None] - codebook.astype(np.float64)[None]
    return (difference**2).sum(axis=2)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_equals_brute_force_in_float64() -> None:
    latents, codebook = normal(500, 16), normal(300, 16, seed=1)
    tokens = np.asarray(nearest_code(jnp.asarray(latents), jnp.asarray(codebook)))
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, distances(latents, codebook).argmin(axis=1))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_ties_go_to_the_lowest_index(seed: int) -> None:
    """Small integers: float32 is exact, and most latents have several nearest codes."""
    rng = np.random.default_rng(seed)
    latents = rng.integers(-2, 3, (40, 2)).astype(np.float32)
    codebook = rng.integers(-2, 3, (24, 2)).astype(np.float32)
    tokens = np.asarray(nearest_code(jnp.asarray(latents), jnp.asarray(codebook)))
    np.testing.assert_array_equal(tokens, distances(latents, codebook).argmin(axis=1))


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 23, 70])
def test_in_blocks_as_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = jnp.asarray(normal(count, 4)), jnp.asarray(normal(7, 4, seed=1))
    at_once = np.asarray(nearest_code(latents, codebook))
    monkeypatch.setattr(nearest, "MAX_DISTANCES", 70)  # ten rows
    in_blocks = np.asarray(nearest_code(latents, codebook))
    np.testing.assert_array_equal(in_blocks, at_once)


def test_block_is_bounded(matrix_products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_DISTANCES", 70)
    jaxpr = jax.make_jaxpr(nearest_code)(jnp.zeros((1000, 4)), jnp.zeros((7, 4)))
    assert {equation.outvars[0].aval.shape for equation in matrix_products(jaxpr)} == {(10, 7)}


def test_one_row_at_a_time_when_the_codebook_is_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_DISTANCES", 3)
    latents, codebook = normal(5, 4), normal(7, 4, seed=1)
    tokens = nearest_code(jnp.asarray(latents), jnp.asarray(codebook))
    np.testing.assert_array_equal(tokens, distances(latents, codebook).argmin(axis=1))


@pytest.mark.parametrize("limit", [1 << 24, 70])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_float32_at_highest_precision(
    limit: int, dtype: jnp.dtype, matrix_products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "MAX_DISTANCES", limit)
    jaxpr = jax.make_jaxpr(nearest_code)(jnp.zeros((50, 4), dtype), jnp.zeros((7, 4), dtype))
    found = matrix_products(jaxpr)
    assert len(found) == 1
    assert found[0].params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    assert {variable.aval.dtype for variable in (*found[0].invars, *found[0].outvars)} == {
        np.dtype("float32")
    }


def test_bfloat16_latents_are_compared_in_float32() -> None:
    """The two codes are one in bfloat16; in float32 the second is the nearer."""
    codebook = jnp.array([[1.0], [1.0009765625]], jnp.float32)
    latents = jnp.array([[1.5]], jnp.bfloat16)
    assert nearest_code(latents, codebook).tolist() == [1]


@pytest.fixture(scope="module")
def quantizer() -> NearestQuantizer:
    quantizer = NearestQuantizer(8, 4, rngs=nnx.Rngs(0))
    quantizer.codebook[...] = jnp.asarray(normal(8, 4, seed=5))
    return quantizer


@pytest.fixture(scope="module")
def latents() -> jax.Array:
    return jnp.asarray(normal(2, 3, 5, 4, seed=6))


def test_tokens_keep_the_grid(quantizer: NearestQuantizer, latents: jax.Array) -> None:
    tokens = quantizer.tokens(latents)
    expected = distances(np.asarray(latents).reshape(-1, 4), np.asarray(quantizer.codebook[...]))
    np.testing.assert_array_equal(tokens, expected.argmin(axis=1).reshape(2, 3, 5))


def test_result_holds_codes_tokens_and_losses(quantizer: NearestQuantizer, latents: jax.Array) -> None:
    result = quantizer(latents)
    chosen = np.asarray(quantizer.codebook[...])[np.asarray(quantizer.tokens(latents))]
    mse = np.mean((chosen.astype(np.float64) - np.asarray(latents)) ** 2)
    np.testing.assert_array_equal(result.tokens, quantizer.tokens(latents))
    np.testing.assert_array_equal(quantizer.lookup(result.tokens), chosen)
    np.testing.assert_allclose(result.codes, chosen, atol=1e-6)
    np.testing.assert_allclose([result.codebook_loss, result.commitment_loss], mse, rtol=1e-5)


def test_straight_through_gradient_is_the_identity(quantizer: NearestQuantizer, latents: jax.Array) -> None:
    weights = jnp.asarray(normal(*latents.shape, seed=9))
    gradient = jax.grad(lambda z: jnp.sum(weights * quantizer(z).codes))(latents)
    np.testing.assert_array_equal(gradient, weights)


def codebook_gradient(quantizer: NearestQuantizer, latents: jax.Array, part: str) -> np.ndarray:
    graph, state = nnx.split(quantizer)
    gradient = jax.grad(lambda state: jnp.sum(getattr(nnx.merge(graph, state)(latents), part)))(state)
    return np.asarray(gradient["codebook"][...])


@pytest.mark.parametrize("part", ["codes", "commitment_loss"])
def test_codebook_learns_from_nothing_else(
    part: str, quantizer: NearestQuantizer, latents: jax.Array
) -> None:
    assert not codebook_gradient(quantizer, latents, part).any()


def test_codebook_loss_draws_used_codes_to_their_latents(
    quantizer: NearestQuantizer, latents: jax.Array
) -> None:
    flat, codebook = np.asarray(latents).reshape(-1, 4), np.asarray(quantizer.codebook[...])
    tokens = distances(flat, codebook).argmin(axis=1)
    expected = np.zeros_like(codebook)
    np.add.at(expected, tokens, 2 * (codebook[tokens] - flat) / flat.size)
    gradient = codebook_gradient(quantizer, latents, "codebook_loss")
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_latents_learn_from_commitment_and_not_from_codebook_loss(
    quantizer: NearestQuantizer, latents: jax.Array
) -> None:
    codes = quantizer.lookup(quantizer.tokens(latents))
    commitment = jax.grad(lambda z: quantizer(z).commitment_loss)(latents)
    np.testing.assert_allclose(commitment, 2 * (latents - codes) / latents.size, atol=1e-6)
    assert not np.any(jax.grad(lambda z: quantizer(z).codebook_loss)(latents))


def test_bfloat16_latents_give_float32_codes(quantizer: NearestQuantizer, latents: jax.Array) -> None:
    result = quantizer(latents.astype(jnp.bfloat16))
    assert result.codes.dtype == result.codebook_loss.dtype == jnp.float32

"""Operations with gradients of their own against what JAX differentiates of the plain formulas."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior import attention
from vqgan.prior.building_blocks import EPSILON, LayerNorm, gelu, product
from vqgan.prior.losses import _most_probable


def values_and_gradients(function: Callable[..., jax.Array], *arguments: jax.Array) -> list[jax.Array]:
    """Returns the values of a function, and its gradients by all arguments under a random cotangent."""
    values, pull_back = jax.vjp(function, *arguments)
    cotangent = jax.random.normal(jax.random.key(7), values.shape).astype(values.dtype)
    return [values, *pull_back(cotangent)]


def assert_alike(found: list[jax.Array], expected: list[jax.Array]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype
        scale = float(jnp.max(jnp.abs(plain)))
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-6 * scale)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def plain_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def test_gelu() -> None:
    x = jnp.concatenate([jnp.linspace(-12, 12, 4001), jnp.array([0.0, -0.0, 1e-30, -40.0, 40.0])])
    assert_alike(values_and_gradients(gelu, x), values_and_gradients(plain_gelu, x))


def test_gelu_in_half_precision_is_the_rounded_one() -> None:
    x = normal(64).astype(jnp.bfloat16)
    found = values_and_gradients(gelu, x)
    assert [value.dtype for value in found] == [jnp.bfloat16] * 2
    np.testing.assert_array_equal(found[0], plain_gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm(dtype: DTypeLike) -> None:
    norms: list[Any] = [
        kind(24, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))
        for kind in (LayerNorm, nnx.LayerNorm)
    ]
    x = (3 + 2 * normal(2, 5, 24)).astype(dtype)

    def applied(norm: Any) -> Callable[..., jax.Array]:
        graph, state = nnx.split(norm)
        names = dict(nnx.to_flat_state(state))

        def call(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            values = {("scale",): scale, ("bias",): bias}
            filled = nnx.from_flat_state([(name, names[name].replace(values[name])) for name in names])
            result: jax.Array = nnx.merge(graph, filled)(x)
            return result

        return call

    arguments = (x, 1 + normal(24, seed=1), normal(24, seed=2))
    found, expected = (values_and_gradients(applied(norm), *arguments) for norm in norms)
    if dtype == jnp.float32:
        assert_alike(found, expected)
    else:
        for ours, plain in zip(found, expected, strict=True):
            assert ours.dtype == plain.dtype
            scale = float(jnp.max(jnp.abs(plain)))
            np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=0.01 * scale)


def test_layer_norm_takes_no_mask() -> None:
    with pytest.raises(ValueError, match="whole rows"):
        LayerNorm(4, rngs=nnx.Rngs(0))(jnp.zeros((1, 4)), mask=jnp.ones((1, 4), bool))


def test_product() -> None:
    x, kernel = normal(2, 3, 8), normal(8, 5, seed=1)
    assert_alike(
        values_and_gradients(lambda x, kernel: product(x, kernel, None), x, kernel),
        values_and_gradients(lambda x, kernel: x @ kernel, x, kernel),
    )


@pytest.mark.parametrize("length", [1, 3, 4, 9, 17])
def test_causal_attention_in_parts(length: int) -> None:
    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    arguments = [normal(2, length, 3, 8, seed=seed) for seed in range(3)]
    assert_alike(
        values_and_gradients(attention._attend_causally, *arguments),
        values_and_gradients(plain, *arguments),
    )


def test_the_first_of_equally_probable_codes() -> None:
    logits = jnp.round(normal(4, 6, 9) * 2)  # many are equal
    np.testing.assert_array_equal(_most_probable(logits), jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(_most_probable(jnp.zeros((1, 2, 3))), 0)

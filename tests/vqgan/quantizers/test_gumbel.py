"""The Gumbel softmax: its samples, its temperature, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.quantizers import GumbelQuantizer, QuantizeOptions
from vqgan.quantizers.gumbel import relaxed_choice

KEY = jax.random.key(3)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture
def quantizer() -> GumbelQuantizer:
    """Logits are the latents themselves; codes have as many dimensions as there are codes."""
    quantizer = GumbelQuantizer(4, 4, rngs=nnx.Rngs(0))
    quantizer.projection.kernel[...] = jnp.eye(4)
    quantizer.projection.bias[...] = jnp.zeros(4)
    quantizer.codebook[...] = jnp.asarray(normal(4, 4, seed=5))
    return quantizer


@pytest.fixture
def latents() -> np.ndarray:
    return normal(2, 3, 5, 4, seed=6)


def test_temperature_to_zero_gives_one_hot(latents: np.ndarray) -> None:
    logits = jnp.asarray(latents.reshape(-1, 4))
    noisy, soft = relaxed_choice(logits, 1e-4, KEY)
    np.testing.assert_allclose(soft, np.eye(4)[np.argmax(noisy, axis=1)], atol=1e-6)
    assert np.any(np.argmax(noisy, axis=1) != np.argmax(logits, axis=1))
    _, flat = relaxed_choice(logits, 1e4, KEY)
    np.testing.assert_allclose(flat, 0.25, atol=1e-3)


def test_samples_follow_the_softmax() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32))[None, :], (20000, 1))
    noisy, _ = relaxed_choice(logits, 0.7, KEY)
    found = np.bincount(np.argmax(noisy, axis=1), minlength=4) / 20000
    np.testing.assert_allclose(found, probabilities, atol=4 * np.sqrt(0.25 / 20000))


def test_without_a_key_the_likeliest_code(quantizer: GumbelQuantizer, latents: np.ndarray) -> None:
    result = quantizer(jnp.asarray(latents), QuantizeOptions(temperature=0.01))
    np.testing.assert_array_equal(result.tokens, latents.argmax(axis=-1))
    np.testing.assert_array_equal(quantizer.tokens(jnp.asarray(latents)), latents.argmax(axis=-1))
    np.testing.assert_array_equal(result.codes, np.asarray(quantizer.codebook[...])[latents.argmax(axis=-1)])


def test_with_a_key_the_sampled_code_itself(quantizer: GumbelQuantizer, latents: np.ndarray) -> None:
    result = quantizer(jnp.asarray(latents), QuantizeOptions(temperature=2.0, key=KEY))
    noisy, _ = relaxed_choice(jnp.asarray(latents.reshape(-1, 4)), 2.0, KEY)
    np.testing.assert_array_equal(np.ravel(result.tokens), np.argmax(noisy, axis=1))
    np.testing.assert_array_equal(result.codes, quantizer.lookup(result.tokens))
    assert np.any(result.tokens != latents.argmax(axis=-1))


def test_divergence_from_even_use(quantizer: GumbelQuantizer, latents: np.ndarray) -> None:
    """Without noise or temperature, whatever the codes are drawn by."""
    choice = softmax(latents.astype(np.float64))
    expected = (choice * np.log(4 * choice)).sum(axis=-1).mean()
    for key in (None, KEY):
        loss = quantizer(jnp.asarray(latents), QuantizeOptions(temperature=0.3, key=key)).commitment_loss
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("key", "temperature"), [(None, 1.0), (KEY, 0.5)])
def test_latents_learn_through_the_softmax(
    key: jax.Array | None, temperature: float, quantizer: GumbelQuantizer, latents: np.ndarray
) -> None:
    """With s the softmax and v what each code would give, the gradient is ``s (v - s.v) / T``."""
    weights = normal(*latents.shape, seed=7)
    gradient = jax.grad(
        lambda z: jnp.sum(weights * quantizer(z, QuantizeOptions(key=key, temperature=temperature)).codes)
    )(jnp.asarray(latents))
    noisy, _ = relaxed_choice(jnp.asarray(latents.reshape(-1, 4)), temperature, key)
    soft = softmax(np.asarray(noisy, np.float64) / temperature)
    value = weights.reshape(-1, 4) @ np.asarray(quantizer.codebook[...], np.float64).T
    expected = soft * (value - (soft * value).sum(axis=1, keepdims=True)) / temperature
    np.testing.assert_allclose(gradient, expected.reshape(latents.shape), rtol=1e-4, atol=1e-5)


def test_only_chosen_codes_learn(quantizer: GumbelQuantizer, latents: np.ndarray) -> None:
    graph, state = nnx.split(quantizer)
    weights = normal(*latents.shape, seed=7)

    def loss(state: nnx.State) -> jax.Array:
        return jnp.sum(weights * nnx.merge(graph, state)(jnp.asarray(latents)).codes)

    expected = np.zeros((4, 4))
    np.add.at(expected, latents.argmax(axis=-1).ravel(), weights.reshape(-1, 4))
    np.testing.assert_allclose(jax.grad(loss)(state)["codebook"][...], expected, atol=1e-5)

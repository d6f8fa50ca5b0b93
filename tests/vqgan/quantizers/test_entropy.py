"""Entropy losses by hand at their ends, and by brute force over all codes in between."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan import losses
from vqgan.losses import bit_entropy_loss, code_affinity, entropy_loss

LOG2 = float(np.log(2))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def brute_force(latents: np.ndarray, codebook: np.ndarray, temperature: float) -> float:
    """From squared distances, in float64."""
    difference = latents.astype(np.float64)[:, None] - codebook.astype(np.float64)[None]
    weights = np.exp(-(difference**2).sum(axis=2) / temperature)
    choice = weights / weights.sum(axis=1, keepdims=True)
    each = -(choice * np.log(choice)).sum(axis=1).mean()
    mean = choice.mean(axis=0)
    return float(each + (mean * np.log(mean)).sum())


@jax.jit
def of_affinity(latents: jax.Array, codebook: jax.Array, temperature: float) -> jax.Array:
    return entropy_loss(code_affinity(latents, codebook), temperature)


def all_signs(bits: int) -> np.ndarray:
    return np.array(list(itertools.product([-1.0, 1.0], repeat=bits)), np.float32)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[9.0, 0.0], [0.0, 9.0]], -LOG2),  # clear choices, spread over both codes
        ([[9.0, 0.0], [9.0, 0.0]], 0.0),  # all choose one
        ([[3.0, 3.0], [1.0, 1.0]], 0.0),  # no choice at all
    ],
)
def test_ends_by_hand(logits: list[list[float]], expected: float) -> None:
    np.testing.assert_allclose(entropy_loss(jnp.array(logits), 0.1), expected, atol=1e-6)


def test_one_value_by_hand() -> None:
    """Softmax of (log 3, 0) is (3/4, 1/4), that of (0, 0) is (1/2, 1/2); their mean is (5/8, 3/8)."""

    def h(p: float) -> float:
        return float(-p * np.log(p) - (1 - p) * np.log(1 - p))

    logits = jnp.array([[2 * np.log(3), 0.0], [0.0, 0.0]], jnp.float32)
    np.testing.assert_allclose(entropy_loss(logits, 2.0), (h(0.75) + h(0.5)) / 2 - h(0.625), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_affinity_is_negative_squared_distance(temperature: float) -> None:
    latents, codebook = normal(30, 3), normal(7, 3, seed=1)
    found = of_affinity(jnp.asarray(latents), jnp.asarray(codebook), temperature)
    np.testing.assert_allclose(found, brute_force(latents, codebook, temperature), rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bits_as_all_their_codes(bits: int, temperature: float) -> None:
    latents = normal(20, bits)
    expected = brute_force(latents, all_signs(bits), temperature)
    np.testing.assert_allclose(bit_entropy_loss(jnp.asarray(latents), temperature), expected, atol=2e-6)


def test_gradient_of_bits_as_of_all_their_codes() -> None:
    latents, codes = jnp.asarray(normal(12, 4)), jnp.asarray(all_signs(4))
    found = jax.jit(jax.grad(bit_entropy_loss))(latents, 2.0)
    expected = jax.jit(jax.grad(lambda z: entropy_loss(code_affinity(z, codes), 2.0)))(latents)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_many_bits_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bits that are always equal: one bit's worth of codes, but each bit alone is even."""
    latents = 50 * jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(bit_entropy_loss(latents, 1.0), -LOG2, atol=1e-5)
    monkeypatch.setattr(losses, "MAX_JOINT_CODES", 2)
    np.testing.assert_allclose(bit_entropy_loss(latents, 1.0), -2 * LOG2, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 1.0])
def test_gradients_are_finite_where_choices_are_certain(temperature: float) -> None:
    latents, codebook = jnp.asarray(30 * normal(6, 4)), jnp.asarray(30 * normal(9, 4, seed=1))
    of_bits = jax.jit(jax.grad(bit_entropy_loss))(latents, temperature)
    of_codes = jax.jit(jax.grad(lambda z: entropy_loss(code_affinity(z, codebook), temperature)))(latents)
    assert np.isfinite(of_bits).all()
    assert np.isfinite(of_codes).all()

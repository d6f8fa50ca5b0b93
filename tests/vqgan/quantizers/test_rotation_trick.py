"""Unit length, and the rotation trick against its definition by matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.quantizers.base import straight_through
from vqgan.quantizers.nearest import rotation_trick, unit_length


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rotation_matrix(latent: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The rotation in the plane of the two that takes one's direction to the other's, by Rodrigues' formula.

    Not the paper's two reflections: sine and cosine of the angle between them.
    """
    u, v = (x.astype(np.float64) / np.linalg.norm(x) for x in (latent, code))
    cosine = u @ v
    skew = np.outer(v, u) - np.outer(u, v)
    return np.eye(len(u)) + skew + skew @ skew / (1 + cosine)


def test_unit_length() -> None:
    vectors = jnp.array([[3.0, 4.0], [0.0, -0.5], [0.0, 0.0]])
    np.testing.assert_allclose(unit_length(vectors), [[0.6, 0.8], [0, -1], [0, 0]], rtol=1e-6)


def test_unit_length_of_zero_has_a_finite_gradient() -> None:
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(unit_length(z))))(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_straight_through_is_the_identity_backwards() -> None:
    latents, codes, weights = (jnp.asarray(normal(6, 3, seed=seed)) for seed in range(3))
    np.testing.assert_allclose(straight_through(latents, codes), codes, atol=1e-6)
    of_latents, of_codes = jax.grad(lambda z, e: jnp.sum(weights * straight_through(z, e)), (0, 1))(
        latents, codes
    )
    np.testing.assert_array_equal(of_latents, weights)
    assert not np.any(of_codes)


def test_rotation_gives_the_codes() -> None:
    latents, codes = normal(2, 5, 4), 3 * normal(2, 5, 4, seed=1)
    np.testing.assert_allclose(rotation_trick(jnp.asarray(latents), jnp.asarray(codes)), codes, atol=2e-6)


def test_rotation_turns_the_gradient_back_and_rescales_it() -> None:
    latents, codes, weights = normal(20, 4), 3 * normal(20, 4, seed=1), normal(20, 4, seed=2)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(weights * rotation_trick(z, jnp.asarray(codes)))))(
        jnp.asarray(latents)
    )
    scales = np.linalg.norm(codes, axis=1) / np.linalg.norm(latents, axis=1)
    expected = [
        scale * rotation_matrix(latent, code).T @ weight
        for scale, latent, code, weight in zip(scales, latents, codes, weights, strict=True)
    ]
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-4)


def test_rotation_by_a_right_angle_by_hand() -> None:
    """From (2, 0) to (0, 1): a quarter turn and half the length; a gradient turns a quarter back."""
    latents, codes = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
    gradient = jax.jit(jax.grad(lambda z, weights: jnp.sum(weights * rotation_trick(z, codes))))
    np.testing.assert_allclose(gradient(latents, jnp.array([[1.0, 0.0]])), [[0.0, -0.5]], atol=1e-6)
    np.testing.assert_allclose(gradient(latents, jnp.array([[0.0, 1.0]])), [[0.5, 0.0]], atol=1e-6)


def test_rotation_gives_the_codes_no_gradient() -> None:
    latents, codes = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=1))
    assert not np.any(jax.grad(lambda e: jnp.sum(rotation_trick(latents, e) ** 2))(codes))


def test_opposite_directions_stay_finite() -> None:
    latents, codes = jnp.array([[1.0, 2.0]]), jnp.array([[-2.0, -4.0]])
    np.testing.assert_allclose(rotation_trick(latents, codes), codes, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(rotation_trick(z, codes))))(latents)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("latent", "code"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_without_direction_the_gradient_goes_straight_through(latent: list[float], code: list[float]) -> None:
    latents, codes, weights = jnp.array([latent]), jnp.array([code]), jnp.array([[3.0, -5.0]])
    np.testing.assert_array_equal(rotation_trick(latents, codes), codes)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(weights * rotation_trick(z, codes))))(latents)
    np.testing.assert_array_equal(gradient, weights)

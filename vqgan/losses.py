"""Losses as pure functions of arrays."""

import jax
import jax.numpy as jnp


def l1(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Mean absolute difference."""
    return jnp.mean(jnp.abs(reconstruction - images))


def l2(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Mean squared difference."""
    return jnp.mean((reconstruction - images) ** 2)

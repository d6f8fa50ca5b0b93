"""Arithmetic on vectors: unit length, and two ways of passing a gradient from codes to latents."""

import jax
import jax.numpy as jnp

EPSILON = 1e-12  # the least norm that is divided by, as in the reference
NO_DIRECTION = 1e-6  # a shorter vector has no direction to turn from or to


def unit_length(vectors: jax.Array) -> jax.Array:
    """``[..., D]`` vectors divided by their length, in float32; zero stays zero, with a finite gradient."""
    vectors = vectors.astype(jnp.float32)
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, EPSILON**2))


def straight_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """``codes`` whose gradient reaches ``latents`` unchanged, and reaches the codes not at all.

    *Neural Discrete Representation Learning* (arXiv 1711.00937), section 3.2.
    """
    return latents + jax.lax.stop_gradient(codes - latents)


def rotate(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """``codes`` as latents that were turned and stretched, by a linear map that counts as constant.

    *Restructuring Vector Quantization with the Rotation Trick* (arXiv 2410.06424), section 4.2: with
    e a latent, q its code, hats for unit length and r the unit vector along their sum,
    ``q = |q| / |e| (I - 2 r r^T + 2 q^ e^^T) e``. The gradient of e is thereby the code's, turned back
    and rescaled. Where latent or code have no direction the gradient goes straight through.

    Args:
      latents: ``[..., D]`` float32.
      codes: ``[..., D]`` float32, one for each latent.

    Returns:
      ``[..., D]``: the values of ``codes``, up to rounding.
    """
    e, q = jax.lax.stop_gradient((latents, codes))
    lengths = [jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True)) for vectors in (e, q)]
    e, q = unit_length(e), unit_length(q)
    r = unit_length(e + q)
    turned = latents - 2 * r * _dot(r, latents) + 2 * q * _dot(e, latents)
    rotated = turned * (lengths[1] / jnp.maximum(lengths[0], NO_DIRECTION))
    exact = straight_through(rotated, codes)
    clear = jnp.minimum(*lengths) > NO_DIRECTION
    return jnp.where(clear, exact, straight_through(latents, codes))


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(left * right, axis=-1, keepdims=True)

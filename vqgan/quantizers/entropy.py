"""Entropy losses: each latent should choose clearly, and all latents together choose every code.

The mean entropy of a latent's soft choice minus the entropy of the mean choice, in nats:
*Language Model Beats Diffusion* (arXiv 2310.05737), section 3.1. It lies between ``-log(codes)``
(clear choices, all codes alike in use) and 0 (all latents choose alike).
"""

import jax
import jax.numpy as jnp

MAX_JOINT_CODES = 1 << 18  # up to here the mean choice of bits is computed for every code
LEAST_PROBABILITY = 1e-30  # below it, p log p is zero in float32 anyway; its logarithm stays finite


def code_affinity(latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """Returns negative squared distances ``[N, K]``, up to a constant for each latent that a softmax ignores.

    Args:
      latents: ``[N, D]`` float32.
      codebook: ``[K, D]`` float32.
    """
    products = jnp.matmul(latents, codebook.T, precision=jax.lax.Precision.HIGHEST)  # (N, K)
    return 2 * products - jnp.sum(codebook**2, axis=1)[None, :]


def entropy_loss(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Computes the loss for a softmax over codes; holds several arrays of the logits' size for its gradient.

    Args:
      logits: ``[N, K]`` float32 affinities of latents to codes.
      temperature: what they are divided by, above 0.

    Returns:
      Scalar in ``[-log K, 0]``.
    """
    log_choice = jax.nn.log_softmax(logits / temperature, axis=1)
    choice = jnp.exp(log_choice)  # (N, K)
    each = -jnp.mean(jnp.sum(choice * log_choice, axis=1))
    return each - _entropy(jnp.mean(choice, axis=0))


def bit_entropy_loss(latents: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Computes the loss for all ``2**D`` codes of -1 and 1, without an array of their number for each latent.

    The softmax over ``-|z - c|^2 / temperature`` is a product over dimensions, each of them 1 with
    probability ``sigmoid(4 z / temperature)``. A latent's entropy is the sum over its bits. The entropy
    of the mean choice is computed for every code up to ``MAX_JOINT_CODES`` of them; beyond, it is the
    sum over bits of the mean bit's entropy, which is at least as much (equal for independent bits).

    Args:
      latents: ``[N, D]`` float32.
      temperature: above 0.

    Returns:
      Scalar in ``[-D log 2, 0]``.
    """
    logits = latents * (4.0 / temperature)
    on, off = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)  # (N, D)
    bits = on * jax.nn.log_sigmoid(logits) + off * jax.nn.log_sigmoid(-logits)
    each = -jnp.mean(jnp.sum(bits, axis=1))
    if 1 << latents.shape[1] <= MAX_JOINT_CODES:
        return each - _entropy(_mean_joint(on, off))
    return each - _entropy(jnp.mean(on, axis=0)) - _entropy(jnp.mean(off, axis=0))


def _entropy(probabilities: jax.Array) -> jax.Array:
    return -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, LEAST_PROBABILITY)))


def _mean_joint(on: jax.Array, off: jax.Array) -> jax.Array:
    """Averages the probability of each of ``2**D`` codes: one matrix product of both halves of the bits."""
    half = on.shape[1] // 2
    low, high = _joint(on[:, :half], off[:, :half]), _joint(on[:, half:], off[:, half:])
    return jnp.matmul(low.T, high, precision=jax.lax.Precision.HIGHEST).reshape(-1) / on.shape[0]


def _joint(on: jax.Array, off: jax.Array) -> jax.Array:
    """Turns ``[N, d]`` probabilities of bits into ``[N, 2**d]`` of their combinations."""
    joint = jnp.ones((on.shape[0], 1), jnp.float32)
    for bit in range(on.shape[1]):
        joint = jnp.concatenate([joint * off[:, bit, None], joint * on[:, bit, None]], axis=1)
    return joint

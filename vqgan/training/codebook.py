"""Placing a codebook on the latents, and moving codes that fall out of use.

Collapse, where few codes do all the work, is the commonest failure of VQ models. A codebook that starts
where the latents are does not begin collapsed; codes that nobody chooses later get a new place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.quantizers.nearest import nearest_code

LATENTS_PER_CODE = 32
K_MEANS_ROUNDS = 10


def k_means(
    points: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    least_share: float = 0.0,
    rounds: int = K_MEANS_ROUNDS,
) -> jax.Array:
    """Lloyd's algorithm from random points; a cluster that is (nearly) empty restarts at a random point.

    Args:
      points: ``[N, D]`` float32, best many for each cluster.
      clusters: number of centres.
      rng: source of randomness.
      least_share: nearly empty means at most this share of the mean number of points.
      rounds: of assigning and averaging.

    Returns:
      ``[clusters, D]`` float32 centres.
    """
    held = jnp.asarray(points)
    centres = held[rng.choice(len(points), clusters, replace=len(points) < clusters)]
    for _ in range(rounds):
        centres = _lloyd_round(held, centres, held[rng.integers(len(points), size=clusters)], least_share)
    return centres


@functools.partial(jax.jit, static_argnums=3)
def _lloyd_round(points: jax.Array, centres: jax.Array, fallback: jax.Array, least_share: float) -> jax.Array:
    clusters = centres.shape[0]
    nearest = nearest_code(points, centres)
    counts = jnp.bincount(nearest, length=clusters).astype(jnp.float32)  # (K,)
    sums = jax.ops.segment_sum(points, nearest, clusters)  # (K, D)
    kept = counts > least_share * jnp.mean(counts)
    return jnp.where(kept[:, None], sums / jnp.maximum(counts, 1.0)[:, None], fallback)


def unused_codes(usage: jax.Array, least_share: float) -> jax.Array:
    """``[K]`` bool: codes chosen at most ``least_share`` times as often as an even use would have it.

    Args:
      usage: ``[K]`` how often each was chosen.
      least_share: 0 for codes that were never chosen.
    """
    counts = usage.astype(jnp.float32)
    # Where nothing was counted, every step was skipped and nothing is known.
    return (counts <= least_share * jnp.mean(counts)) & (jnp.sum(counts) > 0)


def random_latents(latents: jax.Array, codes: int, key: jax.Array) -> jax.Array:
    """``[codes, D]`` drawn from latents ``[B, h, w, D]``, each once where there are enough of them."""
    flat = latents.reshape(-1, latents.shape[-1])
    count = flat.shape[0]
    return flat[jax.random.choice(key, count, (codes,), replace=count < codes)].astype(jnp.float32)

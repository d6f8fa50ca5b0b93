"""From logits to a token: guidance, temperature, truncation, and draws that each sample's seed decides."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.prior.sampling_config import SamplingConfig


class Choice(NamedTuple):
    """Numbers of a :class:`SamplingConfig` as a compiled function takes them: another value of them does not
    compile anew.

    Attributes:
      temperature: float32 scalar.
      top_k: int32 scalar; 0 for all.
      top_p: float32 scalar.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def choice_of(config: SamplingConfig) -> Choice:
    """The numbers of a configuration."""
    return Choice(
        jnp.asarray(config.temperature, jnp.float32),
        jnp.asarray(config.top_k, jnp.int32),
        jnp.asarray(config.top_p, jnp.float32),
    )


def guidance_scales(config: SamplingConfig, count: int) -> np.ndarray:
    """The scale of guidance at each of ``count`` positions (or steps); 1 where there is none.

    Returns:
      float32 ``[count]``.
    """
    progress = np.arange(count) / count
    rise = {
        "constant": np.ones(count),
        "linear": (np.arange(count) + 1) / count,
        "cosine": 0.5 - 0.5 * np.cos(np.pi * (np.arange(count) + 1) / count),
    }[config.guidance_schedule]
    inside = (progress >= config.guidance_from) & (progress < config.guidance_until)
    return np.where(inside, 1 + (config.guidance - 1) * rise, 1.0).astype(np.float32)


def guided(logits: jax.Array, unconditional: jax.Array, scale: jax.Array) -> jax.Array:
    """Classifier-free guidance (arXiv 2207.12598, equation 6, with s = 1 + w).

    Args:
      logits: ``[..., K]`` with a class.
      unconditional: ``[..., K]`` without.
      scale: scalar s; 1 gives ``logits`` back.
    """
    # Written so that a scale of 1 gives the logits back to the last bit.
    return logits + (scale - 1) * (logits - unconditional)


def scaled(logits: jax.Array, choice: Choice, *, truncates: bool) -> jax.Array:
    """Logits after temperature and truncation; minus infinity for tokens that are not to be drawn.

    ``top_p`` counts probabilities among the ``top_k`` tokens. Truncation keeps tokens that are as probable as
    the last one kept.

    Args:
      logits: float32 ``[B, K]``.
      choice: numbers.
      truncates: whether to look at ``top_k`` and ``top_p`` at all, which takes a sort.
    """
    # No logit is above 0 from here on: a tiny temperature sends none to infinity. Greedy choice divides by 1.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / jnp.where(choice.temperature > 0, choice.temperature, 1.0)
    if not truncates:
        return logits
    count = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)  # (B, K), the most probable first
    rank = jnp.arange(count)[None]
    kept = rank < jnp.where(choice.top_k > 0, choice.top_k, count)
    probabilities = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # With 1 nothing goes, whatever the sum of rounded probabilities is.
    kept = kept & ((before < choice.top_p) | (rank == 0) | (choice.top_p >= 1))
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)  # (B, 1)
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(logits: jax.Array, keys: jax.Array, temperature: jax.Array) -> jax.Array:
    """One token for each row, by its own key: the Gumbel-max trick; the most probable at temperature 0.

    Args:
      logits: ``[B, K]`` as :func:`scaled` gives them.
      keys: ``[B]`` random keys.
      temperature: scalar; only whether it is 0 counts here.

    Returns:
      int32 ``[B]``.
    """
    # Type and mode are named, as is the generator in `sample_keys`, so that JAX's settings for their defaults
    # do not change what a seed gives. `jax_threefry_partitionable` and `jax_random_seed_offset` still do.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32, mode="low"))(keys)
    return jnp.argmax(jnp.where(temperature > 0, logits + noise, logits), axis=-1).astype(jnp.int32)


def sample_keys(seeds: jax.Array) -> jax.Array:
    """A random key for each sample from its seed: what it draws does not depend on its neighbours.

    Args:
      seeds: uint32 ``[B]``.

    Returns:
      ``[B]`` random keys.
    """
    return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)

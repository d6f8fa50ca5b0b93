"""From logits to a token: guidance, temperature, truncation, and draws that each sample's seed decides."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.text import Text
from vqgan.prior.transformer import PriorTransformer


class LogitsParams(NamedTuple):
    """Numbers of a :class:`SamplingConfig` as a compiled function takes them.

    Another value of them does not compile anew.

    Attributes:
      temperature: float32 scalar.
      top_k: int32 scalar; 0 for all.
      top_p: float32 scalar.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array

    @classmethod
    def of(cls, config: SamplingConfig) -> "LogitsParams":
        """Returns the numbers of a configuration."""
        return cls(
            jnp.asarray(config.temperature, jnp.float32),
            jnp.asarray(min(config.top_k, jnp.iinfo(jnp.int32).max), jnp.int32),  # beyond all codes anyway
            jnp.asarray(config.top_p, jnp.float32),
        )


# Guidance


@dataclasses.dataclass(frozen=True)
class SamplingVariant:
    """What of the settings decides which computation is needed: another variant compiles anew.

    With guidance, the model's batch is twice the samples': the second half is the same without classes
    and texts.

    Attributes:
      is_guided: whether logits without a class are computed too.
      truncates: whether improbable tokens are left out, which takes a sort.
    """

    is_guided: bool
    truncates: bool

    def double(self, x: jax.Array) -> jax.Array:
        """Repeats the samples' ``[B, ...]`` for every row of the model's batch, ``[B or 2B, ...]``."""
        return jnp.concatenate([x, x]) if self.is_guided else x

    def double_conditions(
        self, labels: jax.Array, condition: jax.Array | None, no_class: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns labels ``[B or 2B]``, no class in the second half, and the condition ``[B or 2B, Lc]``."""
        if self.is_guided:
            labels = jnp.concatenate([labels, jnp.full_like(labels, no_class)])
        return labels, None if condition is None else self.double(condition)

    def double_text(self, prior: PriorTransformer, text: Text | None, batch: int) -> Text | None:
        """Returns complete texts for every row of the model's batch: the second half has none."""
        text = prior.complete_text(text, batch)
        if text is None or prior.text is None or not self.is_guided:
            return text
        without = prior.text.drop(text, jnp.ones(batch, bool))
        return jax.tree.map(lambda *halves: jnp.concatenate(halves), text, without)

    def guide(self, logits: jax.Array, scale: jax.Array) -> jax.Array:
        """Merges the model's logits, ``[B or 2B, ..., K]``, to those of the samples, ``[B, ..., K]``."""
        if not self.is_guided:
            return logits
        with_class, without = jnp.split(logits, 2)
        return guide_logits(with_class, without, scale)


def guide_logits(logits: jax.Array, unconditional: jax.Array, scale: jax.Array) -> jax.Array:
    """Applies classifier-free guidance (arXiv 2207.12598, equation 6, with s = 1 + w).

    Args:
      logits: ``[..., K]`` with a class.
      unconditional: ``[..., K]`` without.
      scale: scalar s; 1 gives ``logits`` back.
    """
    # Written so that a scale of 1 gives the logits back to the last bit.
    return logits + (scale - 1) * (logits - unconditional)


def guidance_scales(config: SamplingConfig, count: int) -> np.ndarray:
    """Returns the scale of guidance at each of ``count`` positions (or steps); 1 where there is none.

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


# Temperature and truncation


def filter_logits(logits: jax.Array, params: LogitsParams, *, truncates: bool) -> jax.Array:
    """Applies temperature, top-k and top-p; minus infinity stands for tokens that are not to be drawn.

    ``top_p`` counts probabilities among the ``top_k`` tokens. Truncation keeps tokens that are as probable as
    the last one kept.

    Args:
      logits: float32 ``[B, K]``.
      params: numbers.
      truncates: whether to look at ``top_k`` and ``top_p`` at all, which takes a sort.
    """
    # No logit is above 0 from here on: a tiny temperature sends none to infinity. Greedy choice divides by 1.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / jnp.where(params.temperature > 0, params.temperature, 1.0)
    if not truncates:
        return logits
    count = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)  # (B, K), the most probable first
    rank = jnp.arange(count)[None]  # (1, K)
    kept = rank < jnp.where(params.top_k > 0, params.top_k, count)  # (1, K)
    probabilities = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # (B, K), of all more probable tokens
    # With 1 nothing goes, whatever the sum of rounded probabilities is.
    kept = kept & ((before < params.top_p) | (rank == 0) | (params.top_p >= 1))
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)  # (B, 1)
    return jnp.where(logits >= least, logits, -jnp.inf)


# Draws


def sample_keys(seeds: jax.Array) -> jax.Array:
    """Makes a random key for each sample from its seed: what it draws does not depend on its neighbours.

    Args:
      seeds: uint32 ``[B]``.

    Returns:
      ``[B]`` random keys.
    """
    return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)


def fold_keys(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """Folds random keys ``[B]`` with one number, or each with its own of ``[B]``."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(data), keys.shape))


def gumbel_noise(keys: jax.Array, count: int) -> jax.Array:
    """Draws standard Gumbel noise, float32 ``[B, count]``, each row by its own key of ``[B]``."""
    # Type and mode are named, as is the generator in `sample_keys`, so that JAX's settings for their defaults
    # do not change what a seed gives. `jax_threefry_partitionable` and `jax_random_seed_offset` still do.
    return jax.vmap(lambda key: jax.random.gumbel(key, (count,), jnp.float32, mode="low"))(keys)


def sample_tokens(logits: jax.Array, keys: jax.Array, temperature: jax.Array) -> jax.Array:
    """Draws a token for each row, by its own key: the Gumbel-max trick; the most probable at temperature 0.

    Args:
      logits: ``[B, K]`` as :func:`filter_logits` gives them.
      keys: ``[B]`` random keys.
      temperature: scalar; only whether it is 0 counts here.

    Returns:
      int32 ``[B]``.
    """
    noisy = logits + gumbel_noise(keys, logits.shape[-1])
    return jnp.argmax(jnp.where(temperature > 0, noisy, logits), axis=-1).astype(jnp.int32)

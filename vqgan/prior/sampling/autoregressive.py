"""Decoding of an autoregressive prior: token after token, with a cache of keys and values.

What a sample becomes follows from its own seed: token k is drawn with the seed's key folded with k.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import (
    LogitsParams,
    SamplingVariant,
    filter_logits,
    fold_keys,
    guidance_scales,
    sample_keys,
    sample_tokens,
)
from vqgan.prior.sampling.request import SampleInputs
from vqgan.prior.transformer import Prior, PriorCache


class RasterNumbers(NamedTuple):
    """Numbers by which tokens are drawn one by one; others of them do not compile anew.

    Attributes:
      params: temperature and truncation.
      scales: float32 ``[L]``, guidance at each token.
    """

    params: LogitsParams
    scales: jax.Array


@dataclasses.dataclass(frozen=True)
class AutoregressiveLoop:
    """Token after token over the grid that the prior was trained on.

    Attributes:
      variant: of the computation.
      given: number n of tokens known from the start, the first ones of every sample.
    """

    variant: SamplingVariant
    given: int
    layout: ClassVar[Any] = PartitionSpec()

    def numbers(self, settings: SamplingConfig, known: np.ndarray) -> RasterNumbers:
        """Returns the numbers for a batch with known tokens ``[B, L]``."""
        scales = guidance_scales(settings, known.shape[1])
        return RasterNumbers(LogitsParams.of(settings), jnp.asarray(scales))

    def __call__(self, prior: Prior, inputs: SampleInputs, numbers: RasterNumbers) -> jax.Array:
        """Decodes a batch, int32 ``[B, L]``."""
        seeds, labels, condition, tokens = jax.tree.map(jnp.asarray, inputs)
        keys, given = sample_keys(seeds), self.given
        # Prefix and given tokens are read at once. The cache is made inside the compiled function: XLA
        # changes it in place, and there is none to donate.
        prefix = self.prefix_inputs(prior, labels, condition)  # (B or 2B, P, D)
        beginning = prior.token_inputs(self.variant.double(tokens[:, :given]), 0)
        x = jnp.concatenate([prefix, beginning], axis=1)  # (B or 2B, P + n, D)
        features, cache = prior.prefill(x, prior.empty_cache(len(x)))
        first = self.next_tokens(prior.logits(features[:, -1]), keys, given, numbers)

        def step(k: jax.Array, state: tuple[jax.Array, PriorCache]) -> tuple[jax.Array, PriorCache]:
            tokens, cache = state
            previous = jax.lax.dynamic_slice_in_dim(tokens, k - 1, 1, axis=1)  # (B, 1)
            x = prior.token_inputs(self.variant.double(previous), k - 1)  # (B or 2B, 1, D)
            logits, cache = prior.decode_step(x, prefix.shape[1] + k - 1, cache)
            return tokens.at[:, k].set(self.next_tokens(logits[:, 0], keys, k, numbers)), cache

        tokens = tokens.at[:, given].set(first)
        tokens, _ = jax.lax.fori_loop(given + 1, tokens.shape[1], step, (tokens, cache))
        return tokens

    def prefix_inputs(self, prior: Prior, labels: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Returns inputs ``[B or 2B, P, D]`` before the first token; the second half is without a class."""
        labels, condition = self.variant.double_conditions(labels, condition, prior.config.classes)
        return prior.prefix_inputs(len(labels), labels, condition)

    def next_tokens(
        self, logits: jax.Array, keys: jax.Array, k: int | jax.Array, numbers: RasterNumbers
    ) -> jax.Array:
        """Draws token k of each sample, int32 ``[B]``, from logits ``[B or 2B, K]``."""
        logits = self.variant.guide(logits, numbers.scales[k])  # (B, K)
        logits = filter_logits(logits, numbers.params, truncates=self.variant.truncates)
        return sample_tokens(logits, fold_keys(keys, k), numbers.params.temperature)

"""A prior's folder ready to sample, whatever its kind."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from vqgan.prior.checkpoint import PriorInfo, load_prior_weights
from vqgan.prior.compiled import Weights
from vqgan.prior.config import PriorConfig
from vqgan.prior.masked_sampling import MaskedSampler
from vqgan.prior.sampling import Sampler

AnySampler = Sampler | MaskedSampler


def load_sampler(info: PriorInfo, *, batch_size: int = 16, dtype: DTypeLike = jnp.float32) -> AnySampler:
    """Reads a prior's weights.

    Args:
      info: what its folder says of it.
      batch_size: samples per device call.
      dtype: type of activations and of the cache.

    Raises:
      UserError: the weights are missing or damaged, or a batch size below 1.
    """
    return make_sampler(info.config, load_prior_weights(info), batch_size=batch_size, dtype=dtype)


def make_sampler(
    config: PriorConfig, params: Weights, *, batch_size: int = 16, dtype: DTypeLike = jnp.float32
) -> AnySampler:
    """The sampler for a prior's kind.

    Args:
      config: the prior's.
      params: its weights by dotted name; none, if ``replace_params`` is to bring them.
      batch_size: samples per device call.
      dtype: type of activations and of the cache.

    Raises:
      UserError: a batch size below 1.
    """
    sampler = MaskedSampler if config.kind == "masked" else Sampler
    return sampler(config, params, batch_size=batch_size, dtype=dtype)

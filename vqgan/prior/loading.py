"""A prior's folder ready to sample, whatever its kind."""

from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vqgan.prior.checkpoint import PriorInfo, load_prior_weights
from vqgan.prior.masked_sampling import MaskedSampler
from vqgan.prior.request import Request
from vqgan.prior.sampling import Sampler
from vqgan.prior.sampling_config import SamplingConfig


class AnySampler(Protocol):
    """What samplers of both kinds can do."""

    @property
    def compilations(self) -> int:
        """How often a function was traced and compiled."""
        ...

    def sample(self, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Token grids ``[B, h, w]`` of a request's B samples."""
        ...


def load_sampler(info: PriorInfo, *, batch_size: int = 16, dtype: DTypeLike = jnp.float32) -> AnySampler:
    """Reads a prior's weights.

    Args:
      info: what its folder says of it.
      batch_size: samples per device call.
      dtype: type of activations and of the cache.

    Raises:
      UserError: the weights are missing or damaged.
    """
    weights = {name: jnp.asarray(value) for name, value in load_prior_weights(info).items()}
    if info.config.kind == "masked":
        return MaskedSampler(info.config, weights, batch_size=batch_size, dtype=dtype)
    return Sampler(info.config, weights, batch_size=batch_size, dtype=dtype)

"""Samplers of priors of both kinds: weights that are let go of, and their type on the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import MaskedSamplingConfig, SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer

HEAD = (20, 13)  # of no other array
CONFIG = PriorConfig(codebook_size=HEAD[1], grid=(2, 2), layers=1, heads=1, width=HEAD[0], hidden=8)
GREEDY = {
    "autoregressive": SamplingConfig(temperature=0),
    "masked": SamplingConfig(temperature=0, masked=MaskedSamplingConfig(steps=1)),
}
REQUEST = Request(np.arange(2))
Params = Callable[[PriorConfig], dict[str, Any]]


def heads() -> list[jax.Array]:
    """All matrices of the last layer on any device."""
    return [x for x in jax.live_arrays() if x.shape == HEAD]


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_released_weights_are_gone(random_params: Params, kind: str) -> None:
    assert heads() == []
    params = random_params(dataclasses.replace(CONFIG, kind=kind))  # in NumPy
    sampler = PriorSampler(dataclasses.replace(CONFIG, kind=kind), params, batch_size=2)
    tokens = sampler.sample(REQUEST, GREEDY[kind])
    assert len(heads()) == 1
    sampler.replace_params(params)
    assert len(heads()) == 1
    sampler.release()
    assert heads() == []
    with pytest.raises(ValueError, match="no weights: give it some with replace_params"):
        sampler.sample(REQUEST, GREEDY[kind])
    sampler.replace_params(params)
    np.testing.assert_array_equal(sampler.sample(REQUEST, GREEDY[kind]), tokens)
    assert sampler.compilations == 1
    sampler.release()


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_matrices_are_kept_in_the_type_of_activations(random_params: Params, kind: str) -> None:
    config = dataclasses.replace(CONFIG, kind=kind)
    params = random_params(config)
    sampler = PriorSampler(config, params, batch_size=2, dtype=jnp.bfloat16)
    assert [x.dtype for x in heads()] == [jnp.bfloat16]
    first = sampler.sample(REQUEST, GREEDY[kind])[:, 0, 0]
    sampler.release()
    # The layers themselves cast float32 weights to the same.
    prior = take_apart(lambda: PriorTransformer(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))).bind(
        params, {}
    )
    hidden = np.full((2, 4), config.codebook_size if kind == "masked" else 0)
    np.testing.assert_array_equal(first, jax.jit(prior)(hidden)[:, 0].argmax(axis=-1))

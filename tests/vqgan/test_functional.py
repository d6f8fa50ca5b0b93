"""Modules taken apart into arrays and put together again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.toy_codec import TOY_IN_TRAINING
from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.functional import take_apart
from vqgan.model.vqgan import VQGAN


def test_bound_module_is_the_one_that_was_taken_apart() -> None:
    apart = take_apart(lambda: VQGAN(TOY_IN_TRAINING, rngs=nnx.Rngs(4)))
    params, others = apart.initial()
    assert others == {}
    again, _ = apart.values_of(apart.bind(params, others))
    assert params.keys() == again.keys()
    assert all(np.array_equal(params[name], again[name]) for name in params)
    assert {name.partition(".")[0] for name in params} == {"encoder", "quantizer", "decoder"}


def test_randomness_follows_from_the_key() -> None:
    noisy = dataclasses.replace(TOY_IN_TRAINING, dropout=0.5)
    apart = take_apart(lambda: VQGAN(noisy, rngs=nnx.Rngs(4)))
    params, others = apart.initial()

    @jax.jit
    def call(key: jax.Array) -> jax.Array:
        return apart.bind(params, others, key)(jnp.ones((1, 16, 16, 3))).images

    one, same, other = (np.asarray(call(jax.random.key(number))) for number in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_statistics_are_others_and_stay_in_the_copy() -> None:
    config = DiscriminatorConfig(channels=4, layers=1)
    apart = take_apart(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
    params, others = apart.initial()
    before = {name: np.array(value) for name, value in others.items()}
    assert any("mean" in name for name in others)
    bound: Any = apart.bind(params, others)
    bound(jax.random.normal(jax.random.key(0), (2, 16, 16, 3)))
    after = apart.values_of(bound)[1]
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    assert all(np.array_equal(others[name], before[name]) for name in before)

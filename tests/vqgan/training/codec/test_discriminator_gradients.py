"""The discriminator's loss and gradients against direct compositions of the pure losses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan import losses
from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.functional import Arrays, take_apart
from vqgan.losses import LecamState
from vqgan.training.codec.config import AdversarialConfig
from vqgan.training.codec.gradients import DiscriminatorLoss

LECAM = LecamState(jnp.asarray(0.2), jnp.asarray(-0.1))


@pytest.fixture(scope="module")
def network() -> Any:
    from flax import nnx

    config = DiscriminatorConfig(channels=4, layers=1)
    return take_apart(lambda: make_discriminator(config, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module")
def pair() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    real, fake = (jax.random.uniform(key, (4, 16, 16, 3), minval=-1.0) for key in keys)
    return real, 0.3 * fake


def direct(config: AdversarialConfig, network: Any, pair: Any) -> Any:
    """The loss written out, as a function of the parameters."""
    others = network.initial()[1]

    def loss(params: Arrays) -> jax.Array:
        bound = network.bind(params, others)
        real, fake = bound(pair[0]), bound(pair[1])
        value = 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))
        if config.lecam:
            moved = [
                config.lecam_decay * old + (1 - config.lecam_decay) * jax.lax.stop_gradient(jnp.mean(logits))
                for old, logits in zip(LECAM, (real, fake), strict=True)
            ]
            value += config.lecam * jnp.mean(jax.nn.relu(real - moved[1]) ** 2)
            value += config.lecam * jnp.mean(jax.nn.relu(moved[0] - fake) ** 2)
        if config.r1:
            by_image = jax.grad(lambda x: 4 * jnp.mean(network.bind(params, others)(x)))(pair[0])
            value += config.r1 * 0.5 * jnp.mean(jnp.sum(by_image**2, axis=(1, 2, 3)))
        return value

    return loss


@pytest.mark.parametrize("penalties", [{}, {"lecam": 0.7, "lecam_decay": 0.5}, {"r1": 3.0}], ids=str)
def test_gradients(network: Any, pair: Any, penalties: dict[str, float]) -> None:
    config = dataclasses.replace(AdversarialConfig(), **penalties)
    params, others = network.initial()
    loss = DiscriminatorLoss(config, network)
    found, _, lecam, scalars = jax.jit(lambda p: loss.gradients(p, others, LECAM, *pair))(params)
    value, expected = jax.jit(jax.value_and_grad(direct(config, network, pair)))(params)
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6, err_msg=name)
    total = scalars["discriminator"]
    total += sum(getattr(config, name) * scalars[name] for name in ("lecam", "r1") if name in scalars)
    assert float(total) == pytest.approx(float(value), rel=1e-5)
    assert {"lecam", "r1"} & scalars.keys() == penalties.keys() - {"lecam_decay"}
    assert lecam.real != LECAM.real


def test_no_gradient_reaches_the_autoencoder(network: Any, pair: Any) -> None:
    params, others = network.initial()
    loss = DiscriminatorLoss(AdversarialConfig(), network)

    def through(scale: jax.Array) -> jax.Array:
        return loss.gradients(params, others, LECAM, pair[0], scale * pair[1])[3]["discriminator"]

    assert float(jax.jit(jax.grad(through))(jnp.ones(()))) == 0.0


def test_logits_change_nothing(network: Any, pair: Any) -> None:
    params, others = network.initial()
    before = {name: np.array(value) for name, value in others.items()}
    loss = DiscriminatorLoss(AdversarialConfig(), network)
    logits = loss.logits(params, others, pair[0])
    assert logits.shape[0] == 4
    assert all(np.array_equal(others[name], before[name]) for name in before)
    after = loss.gradients(params, others, losses.lecam_start(), *pair)[1]
    assert any(not np.array_equal(after[name], before[name]) for name in before)

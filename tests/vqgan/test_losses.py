"""Losses and their gradients by hand-computed values."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan import losses

IMAGES = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
OTHERS = jnp.array([[[[1.0, 0.0], [6.0, 4.0]]]])
LOG3 = math.log(3)  # where the logistic function is 3/4


def logits(*values: float) -> jax.Array:
    return jnp.array(values, jnp.float32)


def test_l1_is_the_mean_absolute_difference() -> None:
    assert losses.l1(OTHERS, IMAGES) == losses.l1(IMAGES, OTHERS) == 1.25


def test_l2_is_the_mean_squared_difference() -> None:
    assert losses.l2(OTHERS, IMAGES) == losses.l2(IMAGES, OTHERS) == 3.25


def test_pixel_losses_subtract_in_float32() -> None:
    """In bfloat16 the difference of 1 and 256 would be 256."""
    one, many = (jnp.full((2, 2, 2, 3), value, jnp.bfloat16) for value in (1, 256))
    assert losses.l1(one, many) == 255
    assert losses.l2(one, many) == 255**2


def test_vq_loss_weights_the_commitment() -> None:
    assert losses.vq_loss(jnp.float32(2), jnp.float32(3), 0.25) == 2.75


def test_legacy_vq_loss_weights_the_codebook() -> None:
    assert losses.legacy_vq_loss(jnp.float32(2), jnp.float32(3), 0.25) == 3.5


def test_hinge_discriminator() -> None:
    """Half of the means of [0, 0.5] and of [0, 1.5]."""
    assert losses.hinge_discriminator(logits(2, 0.5), logits(-2, 0.5)) == 0.5 * (0.25 + 0.75)


def test_hinge_is_flat_outside_the_margin() -> None:
    gradient = jax.grad(losses.hinge_discriminator, argnums=(0, 1))
    real, fake = gradient(logits(1.5, 0.5, -3, 7), logits(-1.5, 0.5, 3, -7))
    np.testing.assert_array_equal(real, [0, -0.125, -0.125, 0])
    np.testing.assert_array_equal(fake, [0, 0.125, 0.125, 0])


@pytest.mark.parametrize("name", ["vanilla", "non-saturating"])
def test_logistic_discriminator(name: str) -> None:
    """-log(3/4) for the real image and -log(1 - 3/4) for the other, halved."""
    discriminator = losses.ADVERSARIAL[name].discriminator
    value, (real, fake) = jax.value_and_grad(discriminator, (0, 1))(logits(LOG3), logits(LOG3))
    np.testing.assert_allclose(value, 0.5 * (math.log(4 / 3) + math.log(4)), rtol=1e-6)
    np.testing.assert_allclose(real, [-0.5 * 0.25], rtol=1e-6)
    np.testing.assert_allclose(fake, [0.5 * 0.75], rtol=1e-6)


def test_logistic_losses_of_large_logits_are_finite() -> None:
    assert losses.vanilla_discriminator(logits(-1e4), logits(1e4)) == 1e4
    assert losses.nonsaturating_generator(logits(-1e4)) == 1e4
    assert losses.vanilla_discriminator(logits(1e4), logits(-1e4)) == 0


@pytest.mark.parametrize("generator", [losses.ADVERSARIAL[name].generator for name in ("hinge", "vanilla")])
def test_linear_generator(generator: Callable[..., jax.Array]) -> None:
    value, gradient = jax.value_and_grad(generator)(logits(5, -1))
    assert value == -2
    np.testing.assert_array_equal(gradient, [-0.5, -0.5])


def test_nonsaturating_generator() -> None:
    """-log(3/4) where the discriminator is fooled, -log(1/4) where it is not: there the pull is strong."""
    value, gradient = jax.value_and_grad(losses.nonsaturating_generator)(logits(LOG3, -LOG3))
    np.testing.assert_allclose(value, 0.5 * (math.log(4 / 3) + math.log(4)), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.5 * 0.25, -0.5 * 0.75], rtol=1e-6)


def test_registry() -> None:
    """All three at a real logit of log 3 (0.75 by the logistic function) and a fake one of -log 3."""
    real, fake = logits(LOG3), logits(-LOG3)
    found = {
        name: (float(loss.discriminator(real, fake)), float(loss.generator(fake)))
        for name, loss in losses.ADVERSARIAL.items()
    }
    assert found == {
        "hinge": (0, pytest.approx(LOG3)),  # both beyond the margin
        "vanilla": (pytest.approx(math.log(4 / 3)), pytest.approx(LOG3)),
        "non-saturating": (pytest.approx(math.log(4 / 3)), pytest.approx(math.log(4))),
    }


@pytest.mark.parametrize("name", sorted(losses.ADVERSARIAL))
def test_sides_of_a_game_pull_apart(name: str) -> None:
    """The generator raises the logit that its opponent lowers, and the shape of logits is free."""
    fake = jnp.full((2, 3, 3, 1), -0.5)
    lowered = jax.grad(losses.ADVERSARIAL[name].discriminator, argnums=1)(-fake, fake)
    raised = jax.grad(losses.ADVERSARIAL[name].generator)(fake)
    assert jnp.all(lowered > 0)
    assert jnp.all(raised < 0)


@pytest.mark.parametrize("name", sorted(losses.ADVERSARIAL))
def test_adversarial_losses_average_in_float32(name: str) -> None:
    """A mean of bfloat16 logits has digits that bfloat16 has not."""
    loss = losses.ADVERSARIAL[name]
    fake = jnp.array([0.5] * 1023 + [1.0], jnp.bfloat16)
    assert loss.discriminator(fake, fake).dtype == loss.generator(fake).dtype == jnp.float32
    np.testing.assert_array_equal(loss.generator(fake), loss.generator(fake.astype(jnp.float32)))


def test_adaptive_weight_is_the_ratio_of_norms() -> None:
    wanted = jnp.array([[[[3.0, 0.0], [0.0, 4.0]]]])  # a norm of 5
    given = jnp.array([[[[0.0, 6.0], [8.0, 0.0]]]])  # a norm of 10
    np.testing.assert_allclose(losses.adaptive_weight(wanted, given), 5 / 10.0001, rtol=1e-6)
    np.testing.assert_allclose(losses.adaptive_weight(given, wanted), 10 / 5.0001, rtol=1e-6)


def test_adaptive_weight_has_a_ceiling() -> None:
    some, none = jnp.ones((3, 3, 1, 1)), jnp.zeros((3, 3, 1, 1))
    assert losses.adaptive_weight(some, none) == 1e4  # 3 / 1e-4 without it
    assert losses.adaptive_weight(some, none, ceiling=7.0) == 7
    np.testing.assert_allclose(losses.adaptive_weight(some, none, ceiling=1e6), 3e4, rtol=1e-6)
    assert losses.adaptive_weight(none, some) == losses.adaptive_weight(none, none) == 0


def test_adaptive_weight_passes_no_gradient() -> None:
    gradient = jax.grad(lambda a, b: losses.adaptive_weight(a, b), argnums=(0, 1))
    for part in gradient(logits(3, 4), logits(1, 2)):
        np.testing.assert_array_equal(part, [0, 0])


def test_adaptive_weight_sums_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    ones = jnp.ones(4096, jnp.bfloat16)
    np.testing.assert_allclose(losses.adaptive_weight(ones, logits(1.0)), 64 / 1.0001, rtol=1e-6)


def test_adaptive_weight_balances_a_last_layer() -> None:
    """A last layer w = 1 of input 2, pixel loss (2w - 1)^2 and logit w: gradients 4 and -1."""

    def pixel_loss(w: jax.Array) -> jax.Array:
        return losses.l2(2 * w, jnp.ones_like(w))

    def adversarial_loss(w: jax.Array) -> jax.Array:
        return losses.hinge_generator(w)

    def total(w: jax.Array) -> jax.Array:
        weight = losses.adaptive_weight(jax.grad(pixel_loss)(w), jax.grad(adversarial_loss)(w))
        return pixel_loss(w) + weight * adversarial_loss(w)

    np.testing.assert_allclose(jax.grad(total)(jnp.ones((1, 1))), [[4 - 4 / 1.0001]], atol=1e-6)


def test_r1_of_a_linear_discriminator() -> None:
    """Half the squared norm of its weights, whatever the images."""
    w = jnp.arange(12.0).reshape(1, 2, 2, 3) / 10
    images = jnp.ones((5, 2, 2, 3))

    def penalty(w: jax.Array) -> jax.Array:
        return losses.r1_penalty(
            lambda x: jnp.sum(x * jnp.broadcast_to(w, x.shape), axis=(1, 2, 3))[:, None] + 3, images
        )

    value, gradient = jax.value_and_grad(penalty)(w)
    np.testing.assert_allclose(value, 0.5 * 5.06, rtol=1e-6)  # 0.01 * (0 + 1 + 4 + ... + 121)
    np.testing.assert_allclose(gradient, w, rtol=1e-6)


def test_r1_averages_over_the_batch() -> None:
    """The gradient of |x|^2 / 2 is x: squared norms 12 and 0."""
    images = jnp.stack([jnp.ones((2, 2, 3)), jnp.zeros((2, 2, 3))])
    value = losses.r1_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3))[:, None] / 2, images)
    assert value == 0.5 * (12 + 0) / 2


def test_r1_takes_the_mean_of_patches() -> None:
    """Four logits, each twice its pixel: each pixel's gradient is 2 / 4."""
    value = losses.r1_penalty(lambda x: 2 * x, jnp.ones((3, 2, 2, 1)))
    assert value == 0.5 * 4 * 0.5**2


def test_lecam_averages_over_two_steps() -> None:
    state = losses.lecam_start()
    assert state == (0, 0)
    state = losses.lecam_update(state, logits(1, 3), logits(-1, -1), decay=0.75)
    assert state == (0.5, -0.25)
    state = losses.lecam_update(state, logits(4, 0), logits(1, 2), decay=0.75)
    assert state == (0.875, 0.1875)
    assert all(average.dtype == jnp.float32 and average.shape == () for average in state)


def test_lecam_penalty() -> None:
    """Of reals above -0.5: 1 and nothing; of fakes below 1: 1 and nothing."""
    state = losses.LecamState(jnp.float32(1), jnp.float32(-0.5))
    real, fake = logits(0.5, -2), logits(0, 2)
    value, gradient = jax.value_and_grad(losses.lecam_penalty, argnums=(1, 2))(state, real, fake)
    assert value == 0.5 + 0.5
    np.testing.assert_array_equal(gradient[0], [1, 0])
    np.testing.assert_array_equal(gradient[1], [-1, 0])


def test_lecam_averages_carry_no_gradient() -> None:
    def loss(state: losses.LecamState, real: jax.Array) -> jax.Array:
        moved = losses.lecam_update(state, real, real, decay=0.5)
        return losses.lecam_penalty(moved, logits(1), logits(-1)) + moved.real

    state, real = jax.grad(loss, argnums=(0, 1))(losses.lecam_start(), logits(2, 4))
    np.testing.assert_array_equal(real, [0, 0])
    assert state == (0.5, 0)  # the term moved.real alone

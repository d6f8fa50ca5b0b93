"""Pixel losses by hand-computed values."""

import jax.numpy as jnp

from vqgan import losses

IMAGES = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
OTHERS = jnp.array([[[[1.0, 0.0], [6.0, 4.0]]]])


def test_l1_is_the_mean_absolute_difference() -> None:
    assert losses.l1(OTHERS, IMAGES) == losses.l1(IMAGES, OTHERS) == 1.25


def test_l2_is_the_mean_squared_difference() -> None:
    assert losses.l2(OTHERS, IMAGES) == losses.l2(IMAGES, OTHERS) == 3.25

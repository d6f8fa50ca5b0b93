"""The StyleGAN-type discriminator against numpy in float64."""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.discriminators.stylegan import StyleGANBlock, blur, with_deviation

Refused = Callable[[str], AbstractContextManager[None]]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def settings(channels: int, resolution: int) -> DiscriminatorConfig:
    return DiscriminatorConfig(kind="stylegan", channels=channels, resolution=resolution)


def make(channels: int, resolution: int) -> Any:
    return make_discriminator(settings(channels, resolution), rngs=nnx.Rngs(0))


def test_parameters() -> None:
    """At 256 pixels and 64 channels: six blocks of 9aa + 9ab + ab and biases a + b."""
    model = nnx.eval_shape(lambda: make(64, 256))
    widths = [64, 128, 256, 512, 512, 512, 512]
    blocks = sum(9 * a * a + 10 * a * b + a + b for a, b in itertools.pairwise(widths))
    ends = (3 * 64 + 64) + (9 * 513 * 512 + 512) + (16 * 512 * 512 + 512) + (512 + 1)
    leaves = jax.tree.leaves(nnx.state(model))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == blocks + ends == 24_001_089


@pytest.mark.parametrize("side", [8, 16, 32, 128])
def test_one_logit_per_image(side: int) -> None:
    images = jax.ShapeDtypeStruct((3, side, side, 3), jnp.float32)
    logits = jax.eval_shape(lambda images: make(2, side)(images), images)
    assert (logits.shape, logits.dtype) == ((3, 1), jnp.float32)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (1, 16, 32, 3), (1, 20, 20, 3)])
def test_other_sizes_are_refused(shape: tuple[int, ...], refused: Refused) -> None:
    model = nnx.eval_shape(lambda: make(2, 16))
    with refused(f"images of {shape[2]}x{shape[1]} pixels do not fit .* squares of 16 pixels"):
        model(jnp.zeros(shape))


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_blur_equals_numpy(padding: int, stride: int, reference: Any) -> None:
    x = normal(2, 6, 8, 3)
    expected = reference.blur(x, padding=padding, stride=stride)
    np.testing.assert_allclose(blur(jnp.asarray(x), padding=padding, stride=stride), expected, atol=1e-6)


def test_blur_of_a_point() -> None:
    point = np.zeros((1, 7, 7, 1), np.float32)
    point[0, 3, 3] = 64
    expected = np.outer([1, 3, 3, 1], [1, 3, 3, 1])
    np.testing.assert_array_equal(blur(jnp.asarray(point), padding=0, stride=1)[0, :, :, 0], expected)


def test_blur_keeps_a_constant_and_its_type() -> None:
    result = blur(jnp.ones((1, 8, 8, 2), jnp.bfloat16), padding=0, stride=1)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, np.ones((1, 5, 5, 2)))


def test_blur_removes_the_finest_pattern() -> None:
    """Without it, every second pixel of a checkerboard is a constant."""
    board = np.where(np.indices((8, 8)).sum(axis=0) % 2, 1.0, -1.0)[None, :, :, None]
    result = blur(jnp.asarray(board, jnp.float32), padding=0, stride=2)
    np.testing.assert_array_equal(result, np.zeros((1, 3, 3, 1)))


def test_deviation_of_two_groups() -> None:
    """Groups of four: 0, 0, 2, 2 deviate by 1; of four alike, by nothing but the epsilon."""
    values = np.array([0, 0, 2, 2, 5, 5, 5, 5], np.float32)
    result = with_deviation(jnp.asarray(np.broadcast_to(values[:, None, None, None], (8, 2, 3, 2))))
    assert result.shape == (8, 2, 3, 3)
    np.testing.assert_array_equal(result[..., :2], np.broadcast_to(values[:, None, None, None], (8, 2, 3, 2)))
    expected = np.array([1.0] * 4 + [1e-4] * 4)[:, None, None]
    np.testing.assert_allclose(result[..., 2], np.broadcast_to(expected, (8, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (5, 1), (6, 3), (8, 4)])
def test_groups_divide_the_batch(batch: int, group: int) -> None:
    x = normal(batch, 2, 2, 3)
    spread = np.sqrt(x.reshape(batch // group, group, 2, 2, 3).var(axis=1) + 1e-8).mean(axis=(1, 2, 3))
    result = with_deviation(jnp.asarray(x))[:, 0, 0, 3]
    np.testing.assert_allclose(result, np.repeat(spread, group), rtol=1e-5)


def test_deviation_of_equal_images_has_a_gradient() -> None:
    """The root has none at 0: the epsilon is inside."""
    gradient = jax.grad(lambda x: with_deviation(x).sum())(jnp.ones((4, 2, 2, 1)))
    np.testing.assert_allclose(gradient, np.ones((4, 2, 2, 1)), atol=1e-6)


def expected_logits(reference: Any, model: Any, images: np.ndarray) -> np.ndarray:
    """The network for 8 pixels, in numpy."""
    leaky, conv = reference.leaky_relu, reference.conv
    x = leaky(conv(images.astype(np.float64), model.stem))
    (block,) = model.blocks
    h = leaky(conv(x, block.conv1, padding=1))
    h = leaky(conv(reference.blur(h, padding=2, stride=1), block.conv2, stride=2))
    x = (h + conv(reference.blur(x, padding=1, stride=2), block.shortcut)) / np.sqrt(2)
    spread = np.sqrt(x.var(axis=0) + 1e-8).mean()
    x = np.concatenate([x, np.full((*x.shape[:3], 1), spread)], axis=3)
    x = leaky(conv(leaky(conv(x, model.mix, padding=1)), model.gather))
    return conv(x, model.out)[:, 0, 0, :]


def test_equals_numpy(build: Callable[..., Any], forward: Callable[..., jax.Array], reference: Any) -> None:
    model = build(settings(3, 8))
    images = normal(3, 8, 8, 3)
    expected = expected_logits(reference, model, images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(forward(model, jnp.asarray(images)), expected, rtol=1e-4, atol=1e-4)


def test_activations_keep_their_size() -> None:
    """He's scale: noise loses most of its energy to the first blur, after that the size stays."""

    @jax.jit
    def sizes(x: jax.Array) -> jax.Array:
        rngs, found = nnx.Rngs(0), []
        for _ in range(3):
            block = StyleGANBlock(16, 16, spectral_norm=False, dtype=jnp.float32, rngs=rngs)
            x = block(x)
            found.append(jnp.sqrt(jnp.mean(x**2)))
        return jnp.stack(found)

    found = sizes(jnp.asarray(normal(4, 32, 32, 16)))
    assert found[0] > 0.3
    assert found.max() / found.min() < 2


def test_bfloat16_keeps_parameters_and_logits_in_float32(
    build: Callable[..., Any], forward: Callable[..., jax.Array]
) -> None:
    model, exact = build(settings(4, 8), jnp.bfloat16), build(settings(4, 8))
    images = jnp.asarray(normal(4, 8, 8, 3))
    logits, expected = forward(model, images), forward(exact, images)
    assert all(leaf.dtype == jnp.float32 for leaf in [logits, *jax.tree.leaves(nnx.state(model))])
    assert not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.05)

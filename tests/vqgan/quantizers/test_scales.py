"""Residual tokens of several scales: resampling against other implementations, and what they add up to."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqgan import UserError
from vqgan.quantizers import FSQQuantizer, ScalesQuantizer
from vqgan.quantizers.scales import area_weights, cubic_weights
from vqgan.token_layouts import ScalesConfig

sizes = st.integers(1, 24)


@given(sizes, sizes)
def test_averages_cover_the_windows_that_torch_documents(size: int, to: int) -> None:
    weights = area_weights(size, to)
    for row in range(to):
        window = np.arange(int(np.floor(row * size / to)), int(np.ceil((row + 1) * size / to)))
        expected = np.zeros(size)
        expected[window] = 1 / len(window)
        np.testing.assert_allclose(weights[row], expected, atol=1e-6)


def test_averages_of_whole_parts_are_pillow_s_box() -> None:
    values = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32)
    weights = area_weights(12, 4)
    box = np.asarray(Image.fromarray(values).resize((4, 4), Image.Resampling.BOX))
    np.testing.assert_allclose(weights @ values @ weights.T, box, atol=1e-6)


@given(sizes, sizes)
def test_cubic_weights_keep_constants_and_their_own_size(size: int, to: int) -> None:
    np.testing.assert_allclose(cubic_weights(size, to).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(cubic_weights(size, size), np.eye(size), atol=1e-6)


def test_cubic_weights_are_those_of_minus_three_quarters() -> None:
    """Between two pixels that are far from the edge: (-a, ...) by hand, at offsets of a quarter."""
    row = cubic_weights(8, 16)[8]  # at (8 + 0.5) / 2 - 0.5 = 3.75
    a, t = -0.75, 0.75

    def near(x: float) -> float:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1

    def far(x: float) -> float:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    np.testing.assert_allclose(row[2:6], [far(1 + t), near(t), near(1 - t), far(2 - t)], atol=1e-6)
    assert not row[[0, 1, 6, 7]].any()


def quantizer(sides: tuple[int, ...]) -> ScalesQuantizer:
    made = ScalesQuantizer(64, 3, ScalesConfig(sides, 2), rngs=nnx.Rngs(0))
    made.codebook[...] = jnp.asarray(np.random.default_rng(1).standard_normal((64, 3)) * 0.5, jnp.float32)
    return made


@given(st.sampled_from([(4,), (1, 4), (1, 2, 3, 5), (2, 3, 4, 6)]))
@settings(max_examples=4)
def test_the_coarsest_scale_looks_up_the_averages(sides: tuple[int, ...]) -> None:
    made = quantizer(sides)
    latents = np.random.default_rng(2).standard_normal((2, sides[-1], sides[-1], 3)).astype(np.float32)
    tokens = made.tokens(jnp.asarray(latents))
    assert tokens.shape == (2, sum(side**2 for side in sides))
    assert made.lookup(tokens).shape == latents.shape
    averages = np.einsum("ph,qw,bhwd->bpqd", *[area_weights(sides[-1], sides[0])] * 2, latents)
    distances = np.square(averages.reshape(2, -1, 1, 3) - np.asarray(made.codebook[...])).sum(axis=-1)
    np.testing.assert_array_equal(distances.argmin(axis=-1), tokens[:, : sides[0] ** 2])


def test_scales_are_not_trained() -> None:
    with pytest.raises(UserError, match="cannot be trained"):
        quantizer((2,))(jnp.zeros((1, 2, 2, 3)))


@pytest.mark.parametrize("levels", [(8, 6, 5), (7,), (3, 4)])
def test_the_other_bound_of_fsq_keeps_zero(levels: tuple[int, ...]) -> None:
    """Zero is the middle of its level, and the ends are reached."""
    made = FSQQuantizer(levels, "atanh")
    near = np.array([[[-0.1], [0.0], [0.1]]], np.float32) * np.ones(len(levels), np.float32)
    assert not np.asarray(made.lookup(made.tokens(jnp.asarray(near)))).any()
    ends = jnp.full((1, 1, len(levels)), 50.0)
    assert np.asarray(made.tokens(ends)).item() == np.prod(levels) - 1
    assert np.asarray(made.tokens(-ends)).item() == 0

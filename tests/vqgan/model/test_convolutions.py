"""Rearranged convolutions, and the search for the nearest code, give what the plain ones give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.model import convolutions
from vqgan.model.convolutions import convolve_doubled, convolve_images
from vqgan.model.layers import Upsample, conv, repeat_pixels
from vqgan.quantizers.nearest import nearest_code

SIDES = ((1, 1), (1, 1))


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Draws arrays of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(x: jax.Array, kernel: jax.Array, **arguments: object) -> jax.Array:
    """Convolves as JAX does."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), SIDES, dimension_numbers=convolutions.LAYOUT, **arguments
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "width"),
    [(3, 16, 8), (16, 16, 8), (16, 3, 12), (24, 24, 6), (16, 16, 7), (3, 64, 8)],
)
def test_few_channels_are_convolved_to_the_same_values(inputs: int, outputs: int, width: int) -> None:
    x, kernel = arrays((2, 5, width, inputs), (3, 3, inputs, outputs))
    found = convolve_images(x, kernel, (1, 1), SIDES, dimension_numbers=convolutions.LAYOUT)
    assert found.shape == (2, 5, width, outputs)
    np.testing.assert_allclose(found, plain(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs", "pixels"), [(3, 16, 4), (16, 3, 4), (16, 16, 2), (64, 64, 1)])
def test_neighbours_are_computed_as_one_where_channels_are_few(
    inputs: int, outputs: int, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, kernel = arrays((1, 4, 8, inputs), (3, 3, inputs, outputs))

    def program() -> str:
        def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return convolve_images(x, kernel, (1, 1), SIDES, dimension_numbers=convolutions.LAYOUT)

        return str(jax.make_jaxpr(run)(x, kernel))

    assert f"window_strides=(1, {pixels})" in program()
    monkeypatch.setattr(convolutions, "on_processor", lambda: False)
    assert "window_strides=(1, 1)" in program()


def test_strides_other_edges_and_other_kernels_are_left_to_jax() -> None:
    x, kernel, single = arrays((1, 8, 8, 4), (3, 3, 4, 4), (1, 1, 4, 4))
    for kernel_, strides, padding in ((kernel, (2, 2), ((0, 1), (0, 1))), (single, (1, 1), ((0, 0), (0, 0)))):
        expected = jax.lax.conv_general_dilated(
            x, kernel_, strides, padding, dimension_numbers=convolutions.LAYOUT
        )
        found = convolve_images(x, kernel_, strides, padding, dimension_numbers=convolutions.LAYOUT)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 4), (1, 1, 2), (4, 2, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_an_enlarged_image_is_convolved_at_its_small_size(
    height: int, width: int, channels: int, with_bias: bool
) -> None:
    x, kernel, bias = arrays((2, height, width, channels), (3, 3, channels, 5), (5,))
    expected = plain(repeat_pixels(x, 2), kernel) + with_bias * bias[None, None, None]
    found = convolve_doubled(x, kernel, bias if with_bias else None)
    assert found.shape == (2, 2 * height, 2 * width, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_upsampling_is_the_same_on_a_processor_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Upsample(6, with_conv=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    (x,) = arrays((2, 4, 4, 6))

    def loss(layer: Upsample) -> jax.Array:
        return jnp.sum(layer(x) ** 2)

    here, gradients = layer(x), nnx.grad(loss)(layer)
    monkeypatch.setattr("vqgan.model.layers.on_processor", lambda: False)
    monkeypatch.setattr(convolutions, "on_processor", lambda: False)
    np.testing.assert_allclose(here, layer(x), rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4),
        gradients,
        nnx.grad(loss)(layer),
    )


def test_layers_keep_their_type_of_arithmetic() -> None:
    layer = Upsample(4, with_conv=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((1, 2, 2, 4))).dtype == jnp.bfloat16
    assert conv(3, 8, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16


@settings(deadline=None, max_examples=25)
@given(codes=st.sampled_from([1, 2, 63, 64, 65, 130, 200]), seed=st.integers(0, 1 << 16))
def test_the_nearest_code_is_that_of_argmin(codes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # small integers: distances are exact, and ties are many
    codebook = rng.integers(-2, 3, size=(codes, 3)).astype(np.float32)
    latents = rng.integers(-2, 3, size=(17, 3)).astype(np.float32)
    latents[3] = np.nan
    distances = np.sum(codebook**2, axis=1)[None] - 2 * latents @ codebook.T
    np.testing.assert_array_equal(
        nearest_code(jnp.asarray(latents), jnp.asarray(codebook)), np.argmin(distances, axis=1)
    )

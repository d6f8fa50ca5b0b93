"""Convolutions with fewer products give what the plain ones give, alone in programs of the JAX engine."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.codec import Codec
from vqgan.codec_checkpoint import model_weights, save_codec
from vqgan.config import ModelConfig
from vqgan.engines import cores
from vqgan.model import winograd
from vqgan.model.convolutions import convolve_images
from vqgan.model.vqgan import VQGAN
from vqgan.model.winograd import LAYOUT, convolve_columns, with_fewer_products

SIDES = ((1, 1), (1, 1))


def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves as the layers of a codec do."""
    return convolve_images(x, kernel, (1, 1), SIDES, dimension_numbers=LAYOUT)


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves as JAX does."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), SIDES, dimension_numbers=LAYOUT)


def draw(shape: tuple[int, ...], outputs: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Draws an input and a kernel whose outputs are about 1."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, shape[-1], outputs)) / np.sqrt(9 * shape[-1])
    return jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(kernel, jnp.float32)


@settings(deadline=None, max_examples=12)
@given(
    batch=st.integers(1, 2),
    blocks=st.integers(1, 3),
    rows=st.integers(1, 2),
    width=st.integers(1, 9),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1 << 16),
)
def test_values_are_those_of_the_plain_convolution(
    batch: int, blocks: int, rows: int, width: int, channels: tuple[int, int], seed: int
) -> None:
    x, kernel = draw((batch, 4 * blocks * rows, width, channels[0]), channels[1], seed)
    np.testing.assert_allclose(convolve_columns(x, kernel, rows), plain(x, kernel), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(height=st.integers(1, 40), width=st.integers(30, 40), one_core=st.booleans())
def test_layers_of_any_size_are_convolved_to_the_same_values(height: int, width: int, one_core: bool) -> None:
    x, kernel = draw((1, height, width, 128), 128)
    found = with_fewer_products(layer, one_core)(x, kernel)
    np.testing.assert_allclose(found, plain(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "outputs", "rows"),
    [
        ((1, 256, 256, 128), 128, 1),
        ((1, 128, 128, 128), 128, 2),
        ((1, 128, 128, 256), 128, 4),
        ((1, 64, 64, 256), 256, 16),
        ((1, 32, 32, 256), 256, 8),
        ((1, 36, 32, 128), 128, 9),
        ((1, 16, 16, 512), 512, 0),
        ((1, 254, 256, 128), 128, 0),
        ((1, 256, 256, 64), 64, 0),
        ((1, 256, 256, 128), 3, 0),
    ],
)
def test_rows_of_a_block(shape: tuple[int, ...], outputs: int, rows: int) -> None:
    def found(dtype: type = jnp.float32) -> int:
        return winograd.block_rows(shape, (3, 3, shape[-1], outputs), dtype)

    assert found() == 0  # training, and functions of other people
    assert with_fewer_products(found, True)() == rows
    assert with_fewer_products(found, False)() == (shape[1] // 4 if rows else 0)
    assert with_fewer_products(found, True)(jnp.bfloat16) == 0
    assert found() == 0


def test_blocks_change_no_byte() -> None:
    x, kernel = draw((1, 32, 64, 128), 128)
    results = [
        jax.jit(convolve_columns, static_argnums=2).lower(x, kernel, rows).compile(compiler_options=options)
        for rows in (1, 2, 8)
        for options in (None, cores.ONE_CORE)
    ]
    first, *others = (np.asarray(result(x, kernel)) for result in results)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_codecs_give_the_same_bytes_on_one_core_each_and_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(resolution=32, ch=128, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    save_codec(tmp_path, config, model_weights(VQGAN(config, rngs=nnx.Rngs(0))))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = []
    for count in (2, 64):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        codec = Codec.load(tmp_path, batch_size=2)
        tokens = codec.encode(images)
        found.append((tokens, codec.latents(images), codec.decode(tokens)))
    for here, there in zip(*found, strict=True):
        np.testing.assert_array_equal(here, there)
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "LEAST_CHANNELS", 1 << 20)
        written = Codec.load(tmp_path, batch_size=2)
        np.testing.assert_allclose(written.latents(images), found[0][1], rtol=1e-3, atol=1e-4)
        assert not np.array_equal(written.latents(images), found[0][1])  # or nothing was tried above

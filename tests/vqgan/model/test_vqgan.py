"""The whole model: forward pass, parts, and the range of pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.codec_checkpoint import module_state
from vqgan.config import ModelConfig
from vqgan.model.vqgan import VQGAN, denormalize, normalize

RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.5)]


@pytest.mark.parametrize("input_range", RANGES)
def test_normalize_maps_black_and_white_to_the_ends(input_range: tuple[float, float]) -> None:
    ends = normalize(jnp.array([0, 255], jnp.uint8), input_range)
    assert ends.dtype == jnp.float32
    np.testing.assert_allclose(ends, input_range, atol=1e-6)


@pytest.mark.parametrize("input_range", RANGES)
def test_denormalize_undoes_normalize(input_range: tuple[float, float]) -> None:
    values = jnp.arange(256, dtype=jnp.uint8)
    back = denormalize(normalize(values, input_range), input_range)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, values)


def test_denormalize_rounds_and_clips() -> None:
    values = jnp.array([-9.0, -0.001, 0.4 / 255, 0.6 / 255, 254.4 / 255, 1.7, 9.0])
    np.testing.assert_array_equal(denormalize(values, (0.0, 1.0)), [0, 0, 0, 1, 254, 255, 255])


def filled(config: ModelConfig, weights: dict[str, Any]) -> VQGAN:
    model = nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))
    for part, values in weights.items():
        nnx.update(getattr(model, part), module_state(getattr(model, part), values, part))
    return model


def test_forward_is_encode_quantize_decode(
    toy_config: ModelConfig, toy_weights: dict[str, Any], toy_images: np.ndarray
) -> None:
    graph, state = nnx.split(filled(toy_config, toy_weights))

    @jax.jit
    def forward(state: Any, images: jax.Array) -> Any:
        model = nnx.merge(graph, state)
        result = model(images)
        tokens = model.quantizer.tokens(model.encoder(images))
        return result, tokens, model.decoder(model.quantizer.lookup(tokens))

    images = normalize(jnp.asarray(toy_images[:2]), toy_config.input_range)
    result, tokens, decoded = forward(state, images)
    assert result.images.shape == images.shape
    np.testing.assert_array_equal(result.quantized.tokens, tokens)
    np.testing.assert_allclose(result.images, decoded, atol=1e-4)


@pytest.mark.parametrize("double_z", [False, True])
def test_codes_have_the_codebooks_dimension(toy_config: ModelConfig, double_z: bool) -> None:
    config = dataclasses.replace(toy_config, double_z=double_z, embed_dim=3)
    model = nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))
    assert model.quantizer.codebook.shape == (32, 3)
    assert model.encoder.quant_conv.kernel.shape == (1, 1, 16 if double_z else 8, 3)
    assert model.decoder.post_quant_conv.kernel.shape == (1, 1, 3, 8)


def test_without_dropout_there_is_no_random_state(toy_config: ModelConfig) -> None:
    model = nnx.eval_shape(lambda: VQGAN(toy_config, rngs=nnx.Rngs(0)))
    assert not jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param)))

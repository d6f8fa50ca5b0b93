"""Shapes of encoder and decoder, and which levels bear attention."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vqgan.config import ModelConfig
from vqgan.model.vqgan import Decoder, Encoder


def build(kind: Callable[..., nnx.Module], config: ModelConfig) -> nnx.Module:
    return nnx.eval_shape(lambda: kind(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def output(kind: Callable[..., nnx.Module], config: ModelConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    graph, state = nnx.split(build(kind, config))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, images).shape


@pytest.mark.parametrize("change", [{}, {"resamp_with_conv": False}, {"num_res_blocks": 2}])
@pytest.mark.parametrize("multiples", [(1,), (2, 1), (1, 2, 3)])
def test_shapes(toy_config: ModelConfig, change: dict[str, int], multiples: tuple[int, ...]) -> None:
    config = dataclasses.replace(toy_config, ch_mult=multiples, **change)
    f = config.downsampling
    assert output(Encoder, config, (2, 8, 16, 3)) == (2, 8 // f, 16 // f, 8)
    assert output(Decoder, config, (2, 3, 5, 8)) == (2, 3 * f, 5 * f, 3)


def test_double_z_doubles_the_latents_channels(toy_config: ModelConfig) -> None:
    config = dataclasses.replace(toy_config, double_z=True)
    assert output(Encoder, config, (1, 8, 8, 3)) == (1, 4, 4, 16)


def attentions(module: nnx.Module) -> list[int]:
    return [len(level.attentions) for level in module.levels]  # type: ignore[attr-defined]


def test_attention_sits_at_its_resolutions(toy_config: ModelConfig) -> None:
    config = dataclasses.replace(toy_config, ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(8,))
    assert attentions(build(Encoder, config)) == [0, 2, 0]  # 16, 8, 4 pixels
    assert attentions(build(Decoder, config)) == [0, 3, 0]  # 4, 8, 16 pixels


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_middle_attention_is_optional(toy_config: ModelConfig, kind: Callable[..., nnx.Module]) -> None:
    without = dataclasses.replace(toy_config, mid_attention=False)
    assert build(kind, toy_config).middle.attention is not None  # type: ignore[attr-defined]
    assert build(kind, without).middle.attention is None  # type: ignore[attr-defined]


def test_decoder_widths_mirror_the_encoder(toy_config: ModelConfig) -> None:
    config = dataclasses.replace(toy_config, ch_mult=(1, 2, 3))
    decoder = build(Decoder, config)
    widths = [level.blocks[-1].conv2.out_features for level in decoder.levels]  # type: ignore[attr-defined]
    assert widths == [24, 16, 8]

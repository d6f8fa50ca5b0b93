"""The variants that importers brought, against their formulas written in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan import UserError
from vqgan.config import UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.model.layers import AdaptiveGroupNorm, Downsample, LinearAttention, SubPixelUpsample
from vqgan.model.vqgan import TokenDecoder
from vqgan.quantizers import (
    CosineQuantizer,
    GumbelQuantizer,
    InnerProductQuantizer,
    UnitCodesQuantizer,
    make_quantizer,
)
from vqgan.training.codec.config import CodecTrainConfig

RNG = np.random.default_rng(0)


def test_gumbel_tokens_are_the_largest_logit() -> None:
    quantizer = GumbelQuantizer(11, 5, rngs=nnx.Rngs(0))
    quantizer.projection.bias[...] = jnp.asarray(RNG.standard_normal(11), jnp.float32)
    latents = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    logits = latents @ np.asarray(quantizer.projection.kernel[...]) + np.asarray(
        quantizer.projection.bias[...]
    )
    np.testing.assert_array_equal(quantizer.tokens(jnp.asarray(latents)), logits.argmax(-1))
    quantized = quantizer(jnp.asarray(latents))
    np.testing.assert_array_equal(quantized.tokens, logits.argmax(-1))
    np.testing.assert_allclose(quantized.codes, quantizer.lookup(quantized.tokens), atol=1e-6)


def test_cosine_tokens_ignore_lengths() -> None:
    quantizer = CosineQuantizer(11, 5, rngs=nnx.Rngs(0))
    codes = np.asarray(quantizer.codebook[...])
    latents = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    expected = (latents @ unit.T).argmax(-1)
    np.testing.assert_array_equal(quantizer.tokens(jnp.asarray(latents)), expected)
    np.testing.assert_array_equal(quantizer.tokens(jnp.asarray(7 * latents)), expected)
    np.testing.assert_allclose(quantizer.lookup(jnp.asarray(expected)), unit[expected], rtol=1e-5)


def test_linear_attention() -> None:
    layer = LinearAttention(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)
    q, k, v = np.split(x.reshape(6, 4) @ np.asarray(layer.qkv.kernel[...])[0, 0], 3, axis=1)
    k = np.exp(k) / np.exp(k).sum(axis=0)
    out = (q @ (k.T @ v)) @ np.asarray(layer.out.kernel[...])[0, 0]
    np.testing.assert_allclose(layer(jnp.asarray(x)).reshape(6, 4), out, atol=1e-5)


def test_clipped_output_stays_in_the_input_range() -> None:
    fields = {"ch": 32, "ch_mult": (1,), "attn_resolutions": (), "z_channels": 4, "embed_dim": 4}
    codes = 1000 * jnp.asarray(RNG.standard_normal((1, 4, 4, 4)), jnp.float32)
    images = [
        TokenDecoder(ModelConfig(**fields, num_res_blocks=1, clip_output=clip), rngs=nnx.Rngs(0))(codes)
        for clip in (False, True)
    ]
    assert float(jnp.abs(images[0]).max()) > 1
    np.testing.assert_array_equal(jnp.clip(images[0], -1, 1), images[1])


@pytest.mark.parametrize(
    "fields",
    [{"quantizer": "gumble"}, {"attention": "none"}, {"encoder_out_kernel": 2}, {"mid_blocks": 0}],
)
def test_unknown_variants_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UserError):
        ModelConfig(**fields)  # type: ignore[arg-type]


def test_the_quantizer_is_the_configured_one() -> None:
    config = ModelConfig(quantizer="gumbel", codebook_size=4, embed_dim=2)
    assert isinstance(make_quantizer(config, rngs=nnx.Rngs(0)), GumbelQuantizer)


def test_inner_product_tokens_are_neither_nearest_nor_of_the_least_angle() -> None:
    quantizer = InnerProductQuantizer(11, 5, rngs=nnx.Rngs(0))
    codes = (
        RNG.standard_normal((11, 5)).astype(np.float32) * np.linspace(0.5, 3, 11, dtype=np.float32)[:, None]
    )
    quantizer.codebook[...] = jnp.asarray(codes)
    latents = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    tokens = np.asarray(quantizer.tokens(jnp.asarray(latents)))
    np.testing.assert_array_equal(tokens, (latents @ codes.T).argmax(-1))
    distances = ((latents[..., None, :] - codes) ** 2).sum(-1)
    assert (tokens != distances.argmin(-1)).any()
    assert (tokens != (latents @ (codes / np.linalg.norm(codes, axis=1, keepdims=True)).T).argmax(-1)).any()
    np.testing.assert_array_equal(quantizer.lookup(jnp.asarray(tokens)), codes[tokens])


def test_unit_codes_are_looked_up_as_they_are_and_decoded_at_unit_length() -> None:
    quantizer = UnitCodesQuantizer(11, 5, rngs=nnx.Rngs(0))
    codes = RNG.standard_normal((11, 5)).astype(np.float32)
    quantizer.codebook[...] = jnp.asarray(codes)
    latents = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    tokens = np.asarray(quantizer.tokens(jnp.asarray(latents)))
    np.testing.assert_array_equal(tokens, ((latents[..., None, :] - codes) ** 2).sum(-1).argmin(-1))
    expected = codes[tokens] / np.linalg.norm(codes[tokens], axis=-1, keepdims=True)
    np.testing.assert_allclose(quantizer.lookup(jnp.asarray(tokens)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in UNTRAINED_QUANTIZERS if name != "scales"])
def test_quantizers_of_imported_codecs_are_not_trained(name: str) -> None:
    config = ModelConfig(quantizer=name, codebook_size=4, embed_dim=2)
    with pytest.raises(UserError, match="cannot be trained"):
        make_quantizer(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 2, 2, 2)))
    with pytest.raises(UserError, match=f"'{name}'.*not trained here; take one of nearest"):
        CodecTrainConfig(model=config)
    with pytest.raises(UserError, match="has_decoder"):
        CodecTrainConfig(model=ModelConfig(has_decoder=False))


def test_adaptive_norm_reads_the_deviation_and_the_mean_of_the_codes() -> None:
    layer = AdaptiveGroupNorm(3, 8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for linear in (layer.gamma, layer.beta):
        assert linear.bias is not None
        linear.bias[...] = jnp.asarray(RNG.standard_normal(8), jnp.float32)
    x = RNG.standard_normal((2, 4, 4, 8)).astype(np.float32)
    codes = RNG.standard_normal((2, 2, 3, 3)).astype(np.float32)
    flat = codes.reshape(2, 6, 3)
    scale, shift = (
        value @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])  # type: ignore[index]
        for value, linear in (
            (np.sqrt(flat.var(axis=1, ddof=1) + 1e-6), layer.gamma),
            (flat.mean(axis=1), layer.beta),
        )
    )
    groups = x.reshape(2, 16, 2, 4)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    expected = normed * scale[:, None, None, :] + shift[:, None, None, :]
    np.testing.assert_allclose(layer(jnp.asarray(x), jnp.asarray(codes)), expected, atol=1e-5)
    assert np.isfinite(
        np.asarray(layer(jnp.asarray(x), jnp.asarray(codes[:, :1, :1])))
    ).all()  # a single code


def test_sub_pixels_lie_row_by_row() -> None:
    layer = SubPixelUpsample(3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.standard_normal((1, 2, 3, 3)), jnp.float32)
    channels = np.asarray(layer.conv(x))
    doubled = np.asarray(layer(x))
    assert doubled.shape == (1, 4, 6, 3)
    for row, column in ((0, 0), (1, 2), (3, 5), (2, 1)):
        first = ((row % 2) * 2 + column % 2) * 3
        pixel = channels[0, row // 2, column // 2, first : first + 3]
        np.testing.assert_array_equal(doubled[0, row, column], pixel)


def test_symmetric_downsampling_is_padded_on_all_sides() -> None:
    layers = [
        Downsample(2, with_conv=True, symmetric=symmetric, dtype=jnp.float32, rngs=nnx.Rngs(0))
        for symmetric in (False, True)
    ]
    x = jnp.asarray(RNG.standard_normal((1, 4, 4, 2)), jnp.float32)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    one, other = layers
    assert one.conv is not None
    assert other.conv is not None
    assert not np.allclose(one(x), other(x))
    kernel = np.asarray(other.conv.kernel[...])
    corner = np.einsum("hwc,hwcd->d", padded[0, :3, :3], kernel)
    np.testing.assert_allclose(np.asarray(other(x))[0, 0, 0], corner, atol=1e-5)

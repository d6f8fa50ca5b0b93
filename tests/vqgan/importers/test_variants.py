"""The variants that importers brought, against their formulas written in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan import UserError
from vqgan.config import ModelConfig
from vqgan.model.layers import LinearAttention
from vqgan.model.vqgan import TokenDecoder
from vqgan.quantizers import CosineQuantizer, GumbelQuantizer, make_quantizer

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

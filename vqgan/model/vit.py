"""Vision transformers around one-dimensional tokens: encoder and decoder of TiTok.

*An Image is Worth 32 Tokens for Reconstruction and Generation* (arXiv 2406.07550). Blocks are those of *An
Image is Worth 16x16 Words* (arXiv 2010.11929), normalised before attention and before the perceptron.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.config import ModelConfig
from vqgan.model.layers import conv
from vqgan.token_layouts import ViTConfig

EPSILON = 1e-5
EXPANSION = 4  # of a perceptron's hidden layer


def _norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The variance is that of centred values, as in the reference: the faster form cancels digits.
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _table(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    return nnx.Param(nnx.initializers.normal(shape[-1] ** -0.5)(rngs.params(), shape))


class TransformerBlock(nnx.Module):
    """Self-attention over all positions and a perceptron, each with a residual connection."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = _norm(width, dtype, rngs)
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(width, dtype, rngs)
        self.expand = nnx.Linear(width, EXPANSION * width, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(EXPANSION * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = (qkv[:, :, index] for index in range(3))  # (B, N, heads, D)
        x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(batch, length, width))
        return x + self.contract(nnx.gelu(self.expand(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    """Blocks between two normalisations, over a class token, patches and latent tokens."""

    def __init__(
        self, width: int, layers: int, heads: int, patches: int, tokens: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.class_token = _table((width,), rngs)
        self.positions = _table((1 + patches, width), rngs)
        self.token_positions = _table((tokens, width), rngs)
        self.norm_in = _norm(width, dtype, rngs)
        self.blocks = nnx.List(TransformerBlock(width, heads, dtype=dtype, rngs=rngs) for _ in range(layers))
        self.norm_out = _norm(width, dtype, rngs)

    def __call__(self, patches: jax.Array, tokens: jax.Array) -> jax.Array:
        """Runs ``[B, P, W]`` patches and ``[B, L, W]`` tokens to ``[B, 1 + P + L, W]``, class token first."""
        start = jnp.broadcast_to(self.class_token[...], (len(patches), 1, patches.shape[-1]))
        x = jnp.concatenate([start, patches], axis=1) + self.positions[...][None]
        x = jnp.concatenate([x, tokens + self.token_positions[...][None]], axis=1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


class ViTEncoder(nnx.Module):
    """Images ``[B, S, S, 3]`` in the configuration's input range to latents ``[B, L, embed_dim]``."""

    def __init__(self, config: ModelConfig, vit: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, patches = vit.encoder_width, (config.resolution // vit.patch) ** 2
        self.mixed = vit.mixed_latents
        self.patch_embed = nnx.Conv(
            3, width, (vit.patch, vit.patch), strides=vit.patch, padding="VALID", dtype=dtype, rngs=rngs
        )
        self.latent_tokens = _table((vit.tokens, width), rngs)
        self.transformer = Transformer(
            width, vit.encoder_layers, vit.encoder_heads, patches, vit.tokens, dtype, rngs
        )
        self.project = nnx.Linear(width, config.embed_dim, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embed(images)  # (B, g, g, W)
        batch, _, _, width = patches.shape
        tokens = jnp.broadcast_to(self.latent_tokens[...], (batch, *self.latent_tokens.shape))
        encoded = self.transformer(patches.reshape(batch, -1, width), tokens)
        latents = encoded[:, -tokens.shape[1] :]  # (B, L, W)
        if self.mixed:
            latents = latents.reshape(batch, width, -1).transpose(0, 2, 1)
        return self.project(latents)


class ViTDecoder(nnx.Module):
    """Codes ``[B, L, D]`` to what stands at each patch, ``[B, g, g, W]``."""

    def __init__(self, config: ModelConfig, vit: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = vit.decoder_width
        self.side = config.resolution // vit.decoder_patch
        self.embed = nnx.Linear(config.embed_dim, width, dtype=dtype, rngs=rngs)
        self.mask_token = _table((width,), rngs)
        self.transformer = Transformer(
            width, vit.decoder_layers, vit.decoder_heads, self.side**2, vit.tokens, dtype, rngs
        )

    def __call__(self, codes: jax.Array) -> jax.Array:
        tokens = self.embed(codes)
        batch, _, width = tokens.shape
        patches = jnp.broadcast_to(self.mask_token[...], (batch, self.side**2, width))
        decoded = self.transformer(patches, tokens)[:, 1 : 1 + self.side**2]
        return decoded.reshape(batch, self.side, self.side, width)


class PatchPixels(nnx.Module):
    """Turns each patch's features into its pixels, and smooths them with a 3x3 convolution."""

    def __init__(self, vit: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.patch = vit.decoder_patch
        self.to_pixels = nnx.Linear(vit.decoder_width, 3 * self.patch**2, dtype=dtype, rngs=rngs)
        self.conv_out = conv(3, 3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Turns ``[B, g, g, W]`` into ``[B, S, S, 3]``."""
        batch, side, _, _ = x.shape
        pixels = self.to_pixels(x).reshape(batch, side, side, self.patch, self.patch, 3)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
        return self.conv_out(pixels.reshape(batch, side * self.patch, side * self.patch, 3))


class PixelCodes(nnx.Module):
    """Mixes the rows of a second codebook by what stands at each patch: latents of a decoder."""

    def __init__(self, config: ModelConfig, vit: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = vit.decoder_width
        self.hidden = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.to_logits = nnx.Linear(2 * width, vit.pixel_codes, dtype=dtype, rngs=rngs)
        self.codebook = _table((vit.pixel_codes, config.z_channels), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Turns ``[B, g, g, W]`` into ``[B, g, g, z_channels]``."""
        logits = self.to_logits(jnp.tanh(self.hidden(x))).astype(jnp.float32)
        return jnp.einsum("bhwk,kd->bhwd", nnx.softmax(logits), self.codebook[...])

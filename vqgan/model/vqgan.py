"""The VQGAN: encoder, quantizer and decoder, each with its weights apart, and all as one module."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.config import ModelConfig
from vqgan.model.layers import (
    AdaptiveGroupNorm,
    Attention,
    Downsample,
    GroupNorm,
    LinearAttention,
    ResBlock,
    SubPixelUpsample,
    Upsample,
    conv,
)
from vqgan.quantizers import Quantized, make_quantizer


def _res_block(
    in_channels: int, out_channels: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs
) -> ResBlock:
    return ResBlock(
        in_channels,
        out_channels,
        norm_groups=config.norm_groups,
        dropout=config.dropout,
        dtype=dtype,
        rngs=rngs,
        use_bias=config.bias,
        shortcut_from_branch=config.shortcut_from_branch,
    )


def _attention(
    channels: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs
) -> Attention | LinearAttention:
    if config.attention == "linear":
        return LinearAttention(channels, dtype=dtype, rngs=rngs)
    return Attention(channels, norm_groups=config.norm_groups, dtype=dtype, rngs=rngs)


def _upsample(
    channels: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs
) -> Upsample | SubPixelUpsample:
    if config.depth_to_space:
        return SubPixelUpsample(channels, dtype=dtype, rngs=rngs)
    return Upsample(channels, with_conv=config.resamp_with_conv, dtype=dtype, rngs=rngs)


class Level(nnx.Module):
    """The residual blocks (and attentions) of one resolution, with the resampling that ends it.

    A decoder's may begin with a normalisation that reads the codes.
    """

    def __init__(
        self,
        blocks: list[ResBlock],
        attentions: Sequence[Attention | LinearAttention],
        resample: Downsample | Upsample | SubPixelUpsample | None,
        remat: bool,
        adaptive: AdaptiveGroupNorm | None = None,
    ):
        self.blocks = nnx.List(blocks)
        self.attentions = nnx.List(attentions)
        self.resample = resample
        self.remat = remat
        self.adaptive = adaptive

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        if self.adaptive is not None:
            assert codes is not None
            x = self.adaptive(x, codes)
        for index, block in enumerate(self.blocks):
            x = nnx.remat(ResBlock.__call__)(block, x) if self.remat else block(x)
            if self.attentions:
                x = self.attentions[index](x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution (as many as configured)."""

    def __init__(self, channels: int, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.block1 = _res_block(channels, channels, config, dtype, rngs)
        self.attention = _attention(channels, config, dtype, rngs) if config.mid_attention else None
        # The first two keep names of their own: those of all codecs that exist.
        further = [_res_block(channels, channels, config, dtype, rngs) for _ in range(1, config.mid_blocks)]
        self.block2 = further[0] if further else None
        self.blocks = nnx.List(further[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.block1(x)
        if self.attention is not None:
            x = self.attention(x)
        if self.block2 is not None:
            x = self.block2(x)
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Images ``[B, H, W, 3]`` in the configuration's input range to ``[B, h, w, z_channels]``."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, remat: bool = False, rngs: nnx.Rngs):
        widths = [config.ch * multiple for multiple in config.ch_mult]
        self.conv_in = conv(3, config.stem, 3, dtype=dtype, rngs=rngs, use_bias=config.bias)
        levels, channels, side = [], config.stem, config.resolution
        for index, width in enumerate(widths):
            blocks, attentions = [], []
            for _ in range(config.num_res_blocks):
                blocks.append(_res_block(channels, width, config, dtype, rngs))
                channels = width
                if side in config.attn_resolutions:
                    attentions.append(_attention(channels, config, dtype, rngs))
            resample = None
            if index < len(widths) - 1:
                resample = Downsample(
                    channels,
                    with_conv=config.learned_downsampling,
                    symmetric=config.symmetric_downsample,
                    dtype=dtype,
                    rngs=rngs,
                )
                side //= 2
            levels.append(Level(blocks, attentions, resample, remat))
        self.levels = nnx.List(levels)  # highest resolution first
        self.middle = Middle(channels, config, dtype=dtype, rngs=rngs)
        self.norm_out = GroupNorm(channels, config.norm_groups, dtype=dtype, rngs=rngs)
        out_channels = config.z_channels * (2 if config.double_z else 1)
        self.conv_out = conv(channels, out_channels, config.encoder_out_kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)  # (B, H, W, stem)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)  # (B, h, w, C)
        return self.conv_out(nnx.silu(self.norm_out(x)))


class Decoder(nnx.Module):
    """Latents ``[B, h, w, z_channels]`` to images ``[B, H, W, 3]`` in the input range, not clipped."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, remat: bool = False, rngs: nnx.Rngs):
        widths = [config.ch * multiple for multiple in config.ch_mult]
        channels, side = widths[-1], config.resolution // config.downsampling
        self.conv_in = conv(config.z_channels, channels, 3, dtype=dtype, rngs=rngs)
        self.middle = Middle(channels, config, dtype=dtype, rngs=rngs)
        levels = []
        for index, width in reversed(list(enumerate(widths))):
            adaptive = None
            if config.adaptive_norm:
                adaptive = AdaptiveGroupNorm(
                    config.z_channels, channels, config.norm_groups, dtype=dtype, rngs=rngs
                )
            blocks, attentions = [], []
            for _ in range(config.decoder_blocks):
                blocks.append(_res_block(channels, width, config, dtype, rngs))
                channels = width
                if side in config.attn_resolutions:
                    attentions.append(_attention(channels, config, dtype, rngs))
            resample = None
            if index > 0:
                resample = _upsample(channels, config, dtype, rngs)
                side *= 2
            levels.append(Level(blocks, attentions, resample, remat, adaptive))
        self.levels = nnx.List(levels)  # in order of execution: lowest resolution first
        self.norm_out = GroupNorm(channels, config.norm_groups, dtype=dtype, rngs=rngs)
        self.conv_out = conv(channels, 3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.conv_out(self.features(z))

    def features(self, z: jax.Array) -> jax.Array:
        """Runs all but the last layer, whose gradient weighs the adversarial loss, to ``[B, H, W, ch]``."""
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x, z)
        return nnx.silu(self.norm_out(x))


class Reconstruction(NamedTuple):
    """Result of a forward pass.

    Attributes:
      images: ``[B, H, W, 3]`` in the input range, not clipped.
      quantized: tokens, codes and losses of the quantizer.
    """

    images: jax.Array
    quantized: Quantized


class TokenEncoder(nnx.Module):
    """Images to latents of the codebook's dimension; all that tokenizing needs beside the codebook."""

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        channels = config.z_channels * (2 if config.double_z else 1)
        self.encoder = Encoder(config, dtype=dtype, remat=remat, rngs=rngs)
        self.quant_conv = (
            conv(channels, config.embed_dim, 1, dtype=dtype, rngs=rngs) if config.quant_conv else None
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        latents = self.encoder(images)
        return latents if self.quant_conv is None else self.quant_conv(latents)  # (B, h, w, D)


class TokenDecoder(nnx.Module):
    """Code vectors to images; all that decoding needs beside the codebook."""

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.post_quant_conv = (
            conv(config.embed_dim, config.z_channels, 1, dtype=dtype, rngs=rngs)
            if config.quant_conv
            else None
        )
        self.decoder = Decoder(config, dtype=dtype, remat=remat, rngs=rngs)
        self.clip = config.input_range if config.clip_output else None

    def __call__(self, codes: jax.Array) -> jax.Array:
        images = self.decoder.conv_out(self.features(codes))  # (B, H, W, 3)
        return images if self.clip is None else jnp.clip(images, *self.clip)

    def features(self, codes: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` code vectors into what the last layer reads, ``[B, H, W, ch]``."""
        return self.decoder.features(codes if self.post_quant_conv is None else self.post_quant_conv(codes))


class VQGAN(nnx.Module):
    """Encoder, quantizer and decoder.

    The three parts are saved and loaded apart, so that a worker that tokenizes never holds a decoder.

    Args:
      config: architecture.
      dtype: type of activations; parameters and the quantizer stay float32.
      remat: gradient checkpointing: activations inside residual blocks are computed again in the
        backward pass, which costs a third more time and saves most of the memory.
      rngs: source of the weights.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.encoder = TokenEncoder(config, dtype=dtype, remat=remat, rngs=rngs)
        self.quantizer = make_quantizer(config, rngs=rngs)
        self.decoder = TokenDecoder(config, dtype=dtype, remat=remat, rngs=rngs)

    def __call__(self, images: jax.Array) -> Reconstruction:
        """Reconstructs ``[B, H, W, 3]`` images in the input range."""
        quantized = self.quantizer(self.encoder(images))
        return Reconstruction(self.decoder(quantized.codes), quantized)


def normalize(images: jax.Array, input_range: tuple[float, float]) -> jax.Array:
    """Maps uint8 images to float32 in ``input_range``: 0 becomes the lower end, 255 the upper."""
    low, high = input_range
    return images.astype(jnp.float32) * ((high - low) / 255.0) + low


def denormalize(images: jax.Array, input_range: tuple[float, float]) -> jax.Array:
    """Maps images in ``input_range`` to uint8, clipped and rounded to the nearest value."""
    low, high = input_range
    scaled = (images.astype(jnp.float32) - low) * (255.0 / (high - low))
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)

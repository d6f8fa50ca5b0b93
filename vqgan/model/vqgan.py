"""The VQGAN: encoder, quantizer and decoder, each with its weights apart, and all as one module."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vqgan.config import ModelConfig
from vqgan.model.layers import (
    AdaptiveGroupNorm,
    Attention,
    Downsample,
    LinearAttention,
    ResBlock,
    SubPixelUpsample,
    Upsample,
    conv,
    haar_merge,
    haar_split,
    make_norm,
)
from vqgan.model.parameters import decoder_attention
from vqgan.model.vit import PatchPixels, PixelCodes, ViTDecoder, ViTEncoder
from vqgan.quantizers import Quantized, make_quantizer


def _res_block(
    in_channels: int,
    out_channels: int,
    config: ModelConfig,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    code_channels: int | None = None,
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
        code_channels=code_channels,
    )


def _attention(
    channels: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs, code_channels: int | None = None
) -> Attention | LinearAttention:
    if config.attention == "linear":
        return LinearAttention(channels, dtype=dtype, rngs=rngs)
    return Attention(
        channels, norm_groups=config.norm_groups, dtype=dtype, rngs=rngs, code_channels=code_channels
    )


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
            x = nnx.remat(ResBlock.__call__)(block, x, codes) if self.remat else block(x, codes)
            if self.attentions:
                x = self.attentions[index](x, codes)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution (as many as configured)."""

    def __init__(
        self,
        channels: int,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        code_channels: int | None = None,
    ):
        def block() -> ResBlock:
            return _res_block(channels, channels, config, dtype, rngs, code_channels)

        self.block1 = block()
        self.attention = (
            _attention(channels, config, dtype, rngs, code_channels) if config.mid_attention else None
        )
        # The first two keep names of their own: those of all codecs that exist.
        further = [block() for _ in range(1, config.mid_blocks)]
        self.block2 = further[0] if further else None
        self.blocks = nnx.List(further[1:])

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        x = self.block1(x, codes)
        if self.attention is not None:
            x = self.attention(x, codes)
        if self.block2 is not None:
            x = self.block2(x, codes)
        for block in self.blocks:
            x = block(x, codes)
        return x


class Encoder(nnx.Module):
    """Images ``[B, H, W, C]`` in the configuration's input range to ``[B, h, w, z_channels]``."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, remat: bool = False, rngs: nnx.Rngs):
        widths = [config.ch * multiple for multiple in config.ch_mult]
        self.haar_patch = config.haar_patch
        pixels = config.channels.count * config.haar_patch**2
        self.conv_in = conv(pixels, config.stem, 3, dtype=dtype, rngs=rngs, use_bias=config.bias)
        levels, channels, side = [], config.stem, config.resolution // config.haar_patch
        for index, width in enumerate(widths):
            blocks, attentions = [], []
            for _ in range(config.num_res_blocks):
                blocks.append(_res_block(channels, width, config, dtype, rngs))
                channels = width
                if side in config.attn_resolutions:
                    attentions.append(_attention(channels, config, dtype, rngs))
            resample = None
            if index < config.halved_levels:
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
        self.norm_out = make_norm(channels, config.norm_groups, None, dtype=dtype, rngs=rngs)
        out_channels = config.z_channels * (2 if config.double_z else 1)
        self.conv_out = conv(channels, out_channels, config.encoder_out_kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(haar_split(x, self.haar_patch))  # (B, H, W, stem)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)  # (B, h, w, C)
        return self.conv_out(nnx.silu(self.norm_out(x)))


class Decoder(nnx.Module):
    """Latents ``[B, h, w, z_channels]`` to images ``[B, H, W, C]`` in the input range, not clipped.

    Norms of a MoVQ read the codes ``[B, h, w, D]`` as well; other decoders do not need them.
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, remat: bool = False, rngs: nnx.Rngs):
        widths = [config.decoder_width * multiple for multiple in config.ch_mult]
        channels = widths[-1]
        attended = decoder_attention(config)
        self.spatial_norm = config.spatial_norm
        code_channels = config.embed_dim if config.spatial_norm else None
        self.haar_patch = config.haar_patch
        self.conv_in = conv(config.z_channels, channels, 3, dtype=dtype, rngs=rngs)
        self.middle = Middle(channels, config, dtype=dtype, rngs=rngs, code_channels=code_channels)
        levels = []
        for index, width in reversed(list(enumerate(widths))):
            adaptive = None
            if config.adaptive_norm:
                adaptive = AdaptiveGroupNorm(
                    config.z_channels, channels, config.norm_groups, dtype=dtype, rngs=rngs
                )
            blocks, attentions = [], []
            for _ in range(config.decoder_blocks):
                blocks.append(_res_block(channels, width, config, dtype, rngs, code_channels))
                channels = width
                if index in attended:
                    attentions.append(_attention(channels, config, dtype, rngs, code_channels))
            resample = None
            if index >= len(widths) - config.halved_levels:
                resample = _upsample(channels, config, dtype, rngs)
            levels.append(Level(blocks, attentions, resample, remat, adaptive))
        self.levels = nnx.List(levels)  # in order of execution: lowest resolution first
        self.norm_out = make_norm(channels, config.norm_groups, code_channels, dtype=dtype, rngs=rngs)
        self.conv_out = conv(
            channels, config.channels.count * config.haar_patch**2, 3, dtype=dtype, rngs=rngs
        )

    def __call__(self, z: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        return haar_merge(self.conv_out(self.features(z, codes)), self.haar_patch)

    def features(self, z: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        """Runs all but the last layer, whose gradient weighs the adversarial loss, to ``[B, H, W, ch]``."""
        modulating = codes if self.spatial_norm else z
        x = self.middle(self.conv_in(z), modulating)
        for level in self.levels:
            x = level(x, modulating)
        return nnx.silu(self.norm_out(x, modulating))


class Reconstruction(NamedTuple):
    """Result of a forward pass.

    Attributes:
      images: ``[B, H, W, C]`` in the input range, not clipped.
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
        self.encoder = (
            Encoder(config, dtype=dtype, remat=remat, rngs=rngs)
            if config.vit is None
            else ViTEncoder(config, config.vit, dtype=dtype, rngs=rngs)
        )
        self.quant_conv = (
            conv(channels, config.embed_dim, config.quant_conv_kernel, dtype=dtype, rngs=rngs)
            if config.quant_conv
            else None
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
            conv(config.embed_dim, config.z_channels, config.quant_conv_kernel, dtype=dtype, rngs=rngs)
            if config.quant_conv
            else None
        )
        vit = config.vit
        self.vit = None if vit is None else ViTDecoder(config, vit, dtype=dtype, rngs=rngs)
        self.mixture = PixelCodes(config, vit, dtype=dtype, rngs=rngs) if vit and vit.pixel_codes else None
        self.pixels = PatchPixels(vit, dtype=dtype, rngs=rngs) if vit and not vit.pixel_codes else None
        if self.pixels is None:
            self.decoder = Decoder(config, dtype=dtype, remat=remat, rngs=rngs)
        self.clip = config if config.clip_output else None

    def __call__(self, codes: jax.Array) -> jax.Array:
        if self.vit is not None and self.pixels is not None:
            images = self.pixels(self.vit(codes))
        else:
            images = self.decoder(self._latents(codes), codes)  # (B, H, W, C)
        return images if self.clip is None else jnp.clip(images, *network_range(self.clip))

    def features(self, codes: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` code vectors into what the last layer reads, ``[B, H, W, ch]``."""
        return self.decoder.features(self._latents(codes), codes)

    def _latents(self, codes: jax.Array) -> jax.Array:
        if self.vit is not None and self.mixture is not None:
            return self.mixture(self.vit(codes))
        return codes if self.post_quant_conv is None else self.post_quant_conv(codes)


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
        """Reconstructs ``[B, H, W, C]`` images in the input range."""
        quantized = self.quantizer(self.encoder(images))
        return Reconstruction(self.decoder(quantized.codes), quantized)


def network_range(config: ModelConfig) -> tuple[Any, Any]:
    """Returns the network's values for levels 0 and 255: two numbers, or ``[1, 1, 1, C]``."""
    pairs = config.channels.input_ranges
    if not pairs:
        return config.input_range
    low, high = np.asarray(pairs, np.float32).T[:, None, None, None]
    return low, high


def normalize(images: jax.Array, input_range: tuple[Any, Any]) -> jax.Array:
    """Maps uint8 images to float32 in ``input_range``: 0 becomes the lower end, 255 the upper."""
    low, high = input_range
    return images.astype(jnp.float32) * ((high - low) / 255.0) + low


def denormalize(images: jax.Array, input_range: tuple[Any, Any]) -> jax.Array:
    """Maps images in ``input_range`` to uint8, clipped and rounded to the nearest value."""
    low, high = input_range
    scaled = (images.astype(jnp.float32) - low) * (255.0 / (high - low))
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)

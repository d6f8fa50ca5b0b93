"""The VQGAN: encoder, quantizer and decoder as one module."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.autoencoder import Decoder, Encoder
from vqgan.config import ModelConfig
from vqgan.layers import conv
from vqgan.quantizers import Quantized, make_quantizer


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
        """``[B, h, w, D]`` code vectors to what the last layer reads, ``[B, H, W, ch]``."""
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
        """``[B, H, W, 3]`` images in the input range to their reconstruction."""
        quantized = self.quantizer(self.encoder(images))
        return Reconstruction(self.decoder(quantized.codes), quantized)


def normalize(images: jax.Array, input_range: tuple[float, float]) -> jax.Array:
    """uint8 images to float32 in ``input_range``: 0 becomes the lower end, 255 the upper."""
    low, high = input_range
    return images.astype(jnp.float32) * ((high - low) / 255.0) + low


def denormalize(images: jax.Array, input_range: tuple[float, float]) -> jax.Array:
    """Images in ``input_range`` to uint8, clipped and rounded to the nearest value."""
    low, high = input_range
    scaled = (images.astype(jnp.float32) - low) * (255.0 / (high - low))
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)

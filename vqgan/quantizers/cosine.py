"""Nearest code by angle: latents and codes are normalised to unit length.

*Vector-quantized Image Modeling with Improved VQGAN* (arXiv 2110.04627), section 3.2. With few
dimensions (8 or so) it keeps large codebooks in use.
"""

import jax
import jax.numpy as jnp

from vqgan.quantizers.base import Quantized
from vqgan.quantizers.nearest import NearestQuantizer, nearest_code

EPSILON = 1e-12  # the least norm that is divided by, as in the reference


def unit_length(vectors: jax.Array) -> jax.Array:
    """``[..., D]`` vectors divided by their length, in float32."""
    vectors = vectors.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
    return vectors / jnp.maximum(norm, EPSILON)


class CosineQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` of any lengths; both lookup directions use the codes' directions only."""

    def __call__(self, latents: jax.Array) -> Quantized:
        return super().__call__(unit_length(latents))

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens."""
        flat = unit_length(latents.reshape(-1, latents.shape[-1]))
        return nearest_code(flat, unit_length(self.codebook[...])).reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors of unit length."""
        return unit_length(self.codebook[...][tokens])

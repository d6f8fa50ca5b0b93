"""Tokens from a learned projection: the head that is trained with the Gumbel-softmax relaxation.

*Categorical Reparameterization with Gumbel-Softmax* (arXiv 1611.01144). Inference takes the largest
logit, without noise or temperature.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import Quantized
from vqgan.quantizers.nearest import map_blocks


class GumbelQuantizer(nnx.Module):
    """A projection ``[D, K]`` to logits and a codebook ``[K, D]``."""

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(embed_dim, codebook_size, rngs=rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (codebook_size, embed_dim)))

    def __call__(self, latents: jax.Array) -> Quantized:
        """Straight through the softmax, without noise; the commitment loss is the KL to uniform use."""
        logits = self._logits(latents.reshape(-1, latents.shape[-1]))
        soft = jax.nn.softmax(logits, axis=-1)
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        codes = soft @ self.codebook[...]
        codes = codes + jax.lax.stop_gradient(self.lookup(tokens) - codes)
        size = logits.shape[-1]
        divergence = jnp.mean(jnp.sum(soft * (jnp.log(soft + 1e-10) + jnp.log(float(size))), axis=-1))
        shape = latents.shape
        return Quantized(codes.reshape(shape), tokens.reshape(shape[:-1]), jnp.zeros(()), divergence)

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens."""
        flat = latents.reshape(-1, latents.shape[-1])
        size = self.codebook[...].shape[0]
        best = map_blocks(lambda part: jnp.argmax(self._logits(part), axis=1).astype(jnp.int32), flat, size)
        return best.reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        return self.codebook[...][tokens]

    def _logits(self, flat: jax.Array) -> jax.Array:
        """``[N, D]`` to ``[N, K]``, in float32 at the highest precision, so that no argmax flips."""
        assert self.projection.bias is not None
        kernel, bias = self.projection.kernel[...], self.projection.bias[...]
        products = jnp.matmul(flat.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        return products + bias[None, :]

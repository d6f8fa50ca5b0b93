"""Nearest-neighbour vector quantization with a straight-through gradient.

*Neural Discrete Representation Learning* (arXiv 1711.00937), equations 1 to 3. The loss has the
paper's form: the codebook term is unweighted and the commitment term carries beta (the trainer's).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import Quantized

# Distances of one block of latents to all codes are held at once: 64 MiB of float32.
MAX_DISTANCES = 1 << 24


def nearest_code(latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the code with the least Euclidean distance, the lowest index on a tie.

    Always in float32 at the highest matrix precision: accelerators multiply in TF32 or bfloat16 by
    default, which flips the argmin between near codes.

    Args:
      latents: ``[N, D]``.
      codebook: ``[K, D]``.

    Returns:
      ``[N]`` int32.
    """
    latents = latents.astype(jnp.float32)
    codebook = codebook.astype(jnp.float32)
    squares = jnp.sum(codebook**2, axis=1)  # (K,)

    def block(part: jax.Array) -> jax.Array:
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every code.
        products = jnp.matmul(part, codebook.T, precision=jax.lax.Precision.HIGHEST)  # (n, K)
        return jnp.argmin(squares[None, :] - 2 * products, axis=1).astype(jnp.int32)

    return map_blocks(block, latents, codebook.shape[0])


def map_blocks(block: Callable[[jax.Array], jax.Array], latents: jax.Array, codes: int) -> jax.Array:
    """``block`` over ``[N, D]`` latents in parts, so that few distances to ``codes`` are held at once.

    Args:
      block: ``[n, D]`` to ``[n]``.
      latents: ``[N, D]``.
      codes: values per latent that ``block`` holds.
    """
    count = latents.shape[0]
    rows = max(1, MAX_DISTANCES // codes)
    if count <= rows:
        return block(latents)
    blocks = -(-count // rows)
    rows = -(-count // blocks)
    padded = jnp.pad(latents, ((0, blocks * rows - count), (0, 0)))
    return jax.lax.map(block, padded.reshape(blocks, rows, -1)).reshape(-1)[:count]


class NearestQuantizer(nnx.Module):
    """A codebook ``[K, D]`` and the nearest-neighbour rule."""

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        bound = 1.0 / codebook_size
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), (codebook_size, embed_dim), minval=-bound, maxval=bound)
        )

    def __call__(self, latents: jax.Array) -> Quantized:
        latents = latents.astype(jnp.float32)
        tokens = self.tokens(latents)
        codes = self.lookup(tokens)
        codebook_loss = jnp.mean((codes - jax.lax.stop_gradient(latents)) ** 2)
        commitment_loss = jnp.mean((jax.lax.stop_gradient(codes) - latents) ** 2)
        straight_through = latents + jax.lax.stop_gradient(codes - latents)
        return Quantized(straight_through, tokens, codebook_loss, commitment_loss)

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens."""
        flat = latents.reshape(-1, latents.shape[-1])
        return nearest_code(flat, self.codebook[...]).reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        return self.codebook[...][tokens]

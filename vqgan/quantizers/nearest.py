"""Nearest-neighbour vector quantization with a straight-through gradient, or the rotation trick.

*Neural Discrete Representation Learning* (arXiv 1711.00937), equations 1 to 3. The loss has the
paper's form: the codebook term is unweighted and the commitment term carries beta (the trainer's).
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import Quantized
from vqgan.quantizers.entropy import code_affinity, entropy_loss
from vqgan.quantizers.vectors import rotate, straight_through

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

    has_codebook: ClassVar[bool] = True

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        bound = 1.0 / codebook_size
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), (codebook_size, embed_dim), minval=-bound, maxval=bound)
        )

    def __call__(
        self,
        latents: jax.Array,
        *,
        rotation: bool = False,
        temperature: jax.Array | float = 1.0,
        key: jax.Array | None = None,
        entropy_temperature: float = 0.0,
    ) -> Quantized:
        """Straight through, or by ``rotation``; see :class:`vqgan.quantizers.base.Quantizer`."""
        latents, codebook = self.comparable(latents), self._codes()
        flat = latents.reshape(-1, latents.shape[-1])
        tokens = nearest_code(flat, codebook).reshape(latents.shape[:-1])
        codes = codebook[tokens]
        entropy = jnp.zeros(())
        if entropy_temperature:
            entropy = entropy_loss(code_affinity(flat, codebook), entropy_temperature)
        return Quantized(
            codes=rotate(latents, codes) if rotation else straight_through(latents, codes),
            tokens=tokens,
            codebook_loss=jnp.mean((codes - jax.lax.stop_gradient(latents)) ** 2),
            commitment_loss=jnp.mean((jax.lax.stop_gradient(codes) - latents) ** 2),
            entropy_loss=entropy,
        )

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens."""
        flat = self.comparable(latents.reshape(-1, latents.shape[-1]))
        return nearest_code(flat, self._codes()).reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        return self.comparable(self.codebook[...][tokens])

    def comparable(self, vectors: jax.Array) -> jax.Array:
        """``[..., D]`` latents or codes in the float32 space where distances are taken.

        Whoever places codes by clustering does it there.
        """
        return vectors.astype(jnp.float32)

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Nothing is learnt without gradients."""

    def replace_codes(self, mask: jax.Array, codes: jax.Array) -> None:
        """Puts ``codes [K, D]`` where ``mask [K]`` is true, in place."""
        self.codebook[...] = jnp.where(mask[:, None], codes.astype(jnp.float32), self.codebook[...])

    def _codes(self) -> jax.Array:
        """The whole codebook ``[K, D]``, comparable."""
        return self.comparable(self.codebook[...])

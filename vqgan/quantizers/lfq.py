"""Lookup-free quantization: each dimension is one bit, its sign; there is no codebook.

*Language Model Beats Diffusion: Tokenizer is Key to Visual Generation* (arXiv 2310.05737), section 3.1.
Without an entropy loss few of the codes come into use.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import Quantized, refuse_rotation
from vqgan.quantizers.entropy import bit_entropy_loss
from vqgan.quantizers.radix import join_digits, split_digits
from vqgan.quantizers.vectors import straight_through


class LFQQuantizer(nnx.Module):
    """All ``2**bits`` vectors of -1 and 1; bit i of a token says whether dimension i is positive."""

    has_codebook: ClassVar[bool] = False

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(
        self,
        latents: jax.Array,
        *,
        rotation: bool = False,
        temperature: jax.Array | float = 1.0,
        key: jax.Array | None = None,
        entropy_temperature: float = 0.0,
    ) -> Quantized:
        """Straight through the sign, with a commitment loss and the bits' entropy loss."""
        refuse_rotation(rotation, "lfq")
        latents = latents.astype(jnp.float32)
        tokens = self.tokens(latents)
        codes = self.lookup(tokens)
        none = jnp.zeros(())
        flat = latents.reshape(-1, self.bits)
        return Quantized(
            codes=straight_through(latents, codes),
            tokens=tokens,
            codebook_loss=none,
            commitment_loss=jnp.mean((codes - latents) ** 2),
            entropy_loss=bit_entropy_loss(flat, entropy_temperature) if entropy_temperature else none,
        )

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens; zero counts as negative."""
        return join_digits(latents > 0, self._levels)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        return 2.0 * split_digits(tokens, self._levels).astype(jnp.float32) - 1.0

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Nothing is learnt without gradients."""

    @property
    def _levels(self) -> tuple[int, ...]:
        return (2,) * self.bits

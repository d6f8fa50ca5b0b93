"""Finite scalar quantization: each dimension is rounded to one of a few levels; there is no codebook.

*Finite Scalar Quantization: VQ-VAE Made Simple* (arXiv 2309.15505), section 3.1 and appendix A.1.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqgan.quantizers.base import Quantized, refuse_rotation
from vqgan.quantizers.radix import join_digits, last_axis, split_digits
from vqgan.quantizers.vectors import straight_through

EPSILON = 1e-3  # keeps the bound short of the point where rounding would reach a level too many


class FSQQuantizer(nnx.Module):
    """The grid of ``levels[i]`` values in dimension i; dimension 0 is the least of a token's digits.

    Code vectors lie in [-1, 1]: ``digit / (L // 2) - 1`` of L levels, so 1 itself belongs to odd L only.
    The paper advises 5 levels and more: with 2, latents near zero all fall on the same side.
    """

    has_codebook: ClassVar[bool] = False

    def __init__(self, levels: Sequence[int]):
        self.levels = tuple(levels)

    def __call__(
        self,
        latents: jax.Array,
        *,
        rotation: bool = False,
        temperature: jax.Array | float = 1.0,
        key: jax.Array | None = None,
        entropy_temperature: float = 0.0,
    ) -> Quantized:
        """Straight through the rounding, not through the bound. There is no loss."""
        refuse_rotation(rotation, "fsq")
        bounded = self._bound(latents)
        rounded = jnp.round(bounded)
        codes = straight_through(bounded, rounded) / self._halves(latents.ndim)
        none = jnp.zeros(())
        return Quantized(codes, self._join(rounded), none, none, none)

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens."""
        return self._join(jnp.round(self._bound(latents)))

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        halves = self._halves(tokens.ndim + 1)
        return (split_digits(tokens, self.levels).astype(jnp.float32) - halves) / halves

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Nothing is learnt without gradients."""

    def _bound(self, latents: jax.Array) -> jax.Array:
        """Latents to numbers that round to ``-(L // 2) .. (L - 1) // 2``; about zero stays zero."""
        levels = np.array(self.levels)
        scale = (levels - 1) * (1 - EPSILON) / 2
        offset = np.where(levels % 2, 0.0, 0.5)
        shifted = latents.astype(jnp.float32) + _like(np.tan(offset / scale), latents.ndim)
        return jnp.tanh(shifted) * _like(scale, latents.ndim) - _like(offset, latents.ndim)

    def _halves(self, rank: int) -> jax.Array:
        return _like(np.array(self.levels) // 2, rank)

    def _join(self, rounded: jax.Array) -> jax.Array:
        """``[..., D]`` rounded numbers to ``[...]`` tokens, in range even for what is not a number."""
        digits = jnp.nan_to_num(rounded + self._halves(rounded.ndim))
        top = _like(np.array(self.levels) - 1, rounded.ndim)
        return join_digits(jnp.clip(digits, 0.0, top), self.levels)


def _like(values: np.ndarray, rank: int) -> jax.Array:
    return last_axis(values, rank, jnp.float32)

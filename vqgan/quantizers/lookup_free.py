"""Lookup-free quantizers: a code is a point of a grid, its token the number that its digits make.

Neither has a codebook. Digit 0 counts least.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vqgan.losses import bit_entropy_loss
from vqgan.quantizers.base import (
    DEFAULT_OPTIONS,
    Quantized,
    QuantizeOptions,
    Quantizer,
    refuse_rotation,
    straight_through,
)

LEAST_SIZE = 1e-12  # that is divided by
EPSILON = 1e-3  # keeps the bound short of the point where rounding would reach a level too many


class FSQQuantizer(Quantizer):
    """The grid of ``levels[i]`` values in dimension i; dimension 0 is the least of a token's digits.

    *Finite Scalar Quantization: VQ-VAE Made Simple* (arXiv 2309.15505), section 3.1 and appendix A.1.
    Code vectors lie in [-1, 1]: ``digit / (L // 2) - 1`` of L levels, so 1 itself belongs to odd L only.
    The paper advises 5 levels and more: with 2, latents near zero all fall on the same side.
    ``bound`` is ``tan`` for the paper's code, or ``atanh`` for that of vector-quantize-pytorch, which Cosmos
    took over: the range is wider by epsilon, not narrower, and zero stays zero exactly.
    """

    def __init__(self, levels: Sequence[int], bound: str = "tan"):
        self.levels = tuple(levels)
        self.bound = bound

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Rounds; gradients go straight through the rounding, not through the bound. There is no loss."""
        refuse_rotation(options, "fsq")
        bounded = self._bound(latents)
        rounded = jnp.round(bounded)
        codes = straight_through(bounded, rounded) / self._halves(latents.ndim)
        none = jnp.zeros(())
        return Quantized(codes, self._join(rounded), none, none, none)

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens."""
        return self._join(jnp.round(self._bound(latents)))

    def margins(self, latents: jax.Array) -> jax.Array:
        """Returns the least distance ``[B, h, w]`` of a digit to where it turns, in levels, at most 0.5."""
        bounded = self._bound(latents)
        return jnp.min(0.5 - jnp.abs(bounded - jnp.round(bounded)), axis=-1)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors."""
        halves = self._halves(tokens.ndim + 1)
        return (split_digits(tokens, self.levels).astype(jnp.float32) - halves) / halves

    def _bound(self, latents: jax.Array) -> jax.Array:
        """Maps latents to numbers that round to ``-(L // 2) .. (L - 1) // 2``; about zero stays zero."""
        bounds = fsq_bounds(self.levels, self.bound)
        shift, scale, offset = (_per_digit(values, latents.ndim) for values in bounds)
        return jnp.tanh(latents.astype(jnp.float32) + shift) * scale - offset

    def _halves(self, rank: int) -> jax.Array:
        return _per_digit(np.array(self.levels) // 2, rank)

    def _join(self, rounded: jax.Array) -> jax.Array:
        """Turns ``[..., D]`` rounded numbers into ``[...]`` tokens, in range even where not a number."""
        digits = jnp.nan_to_num(rounded + self._halves(rounded.ndim))
        top = _per_digit(np.array(self.levels) - 1, rounded.ndim)
        return join_digits(jnp.clip(digits, 0.0, top), self.levels)


class FSQBounds(NamedTuple):
    """How latents are bounded: ``tanh(latents + shift) * scale - offset``, ``[D]`` each."""

    shift: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


def fsq_bounds(levels: Sequence[int], bound: str) -> FSQBounds:
    """Returns the constants of :class:`FSQQuantizer`, for its numbers of levels and kind of bound."""
    numbers = np.array(levels)
    inverse, margin = (np.tan, -EPSILON) if bound == "tan" else (np.arctanh, EPSILON)
    scale = (numbers - 1) * (1 + margin) / 2
    offset = np.where(numbers % 2, 0.0, 0.5)
    return FSQBounds(inverse(offset / scale), scale, offset)


class LFQQuantizer(Quantizer):
    """All ``2**bits`` vectors of -1 and 1; bit i of a token says whether dimension i is positive.

    *Language Model Beats Diffusion: Tokenizer is Key to Visual Generation* (arXiv 2310.05737), section 3.1.
    Without an entropy loss few of the codes come into use.
    """

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Takes signs; gradients go straight through. There is a commitment and the bits' entropy loss."""
        refuse_rotation(options, "lfq")
        latents = latents.astype(jnp.float32)
        tokens = self.tokens(latents)
        codes = self.lookup(tokens)
        none = jnp.zeros(())
        flat, temperature = latents.reshape(-1, self.bits), options.entropy_temperature
        return Quantized(
            codes=straight_through(latents, codes),
            tokens=tokens,
            codebook_loss=none,
            commitment_loss=jnp.mean((codes - latents) ** 2),
            entropy_loss=bit_entropy_loss(flat, temperature) if temperature else none,
        )

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens; zero counts as negative."""
        return join_digits(latents > 0, self._levels)

    def margins(self, latents: jax.Array) -> jax.Array:
        """Returns the least magnitude ``[B, h, w]`` of a dimension, as a share of the largest."""
        sizes = jnp.abs(latents.astype(jnp.float32))
        return jnp.min(sizes, axis=-1) / jnp.maximum(jnp.max(sizes, axis=-1), LEAST_SIZE)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors."""
        return 2.0 * split_digits(tokens, self._levels).astype(jnp.float32) - 1.0

    @property
    def _levels(self) -> tuple[int, ...]:
        return (2,) * self.bits


def join_digits(digits: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Turns ``[..., D]`` digits, i in ``[0, levels[i])``, into ``[...]`` int32 below the levels' product."""
    places = _per_digit(digit_places(levels), digits.ndim, jnp.int32)
    return jnp.sum(digits.astype(jnp.int32) * places, axis=-1, dtype=jnp.int32)


def split_digits(tokens: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Turns ``[...]`` numbers into their digits ``[..., D]`` int32; undoes :func:`join_digits`."""
    rank = tokens.ndim + 1
    places, bases = (_per_digit(values, rank, jnp.int32) for values in (digit_places(levels), levels))
    return tokens.astype(jnp.int32)[..., None] // places % bases


def digit_places(levels: Sequence[int]) -> list[int]:
    """Returns what one unit of each digit is worth."""
    return [math.prod(levels[:index]) for index in range(len(levels))]


def _per_digit(values: Sequence[float] | np.ndarray, rank: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Returns ``[D]`` values as ``[1, ..., 1, D]``, to go with an array of ``rank`` axes."""
    return jnp.asarray(np.reshape(values, (1,) * (rank - 1) + (-1,)), dtype)

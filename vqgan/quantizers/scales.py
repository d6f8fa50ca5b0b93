"""Residual quantization on grids from coarse to fine: tokens of several scales, one after the other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqgan.errors import UserError
from vqgan.model.layers import conv
from vqgan.quantizers.base import DEFAULT_OPTIONS, Quantized, QuantizeOptions, Quantizer
from vqgan.quantizers.nearest import nearest_code
from vqgan.token_layouts import ScalesConfig

SMOOTHED_SHARE = 0.5  # of a code that its 3x3 convolution gives; the rest passes as it is
CUBIC = -0.75  # coefficient of the cubic kernel (Keys, 1981), as torch takes it


class ScalesQuantizer(Quantizer):
    """A codebook ``[K, D]`` that each scale looks up what the coarser ones have left of the latents.

    *Visual Autoregressive Modeling* (arXiv 2404.02905), algorithms 1 and 2: a scale sees the averaged
    residual; its codes are enlarged to the full grid, smoothed and taken off. Tokens are ``[B, L]``, each
    scale row by row.
    """

    def __init__(self, codebook_size: int, embed_dim: int, scales: ScalesConfig, *, rngs: nnx.Rngs):
        bound = 1.0 / codebook_size
        self.scales = scales
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), (codebook_size, embed_dim), minval=-bound, maxval=bound)
        )
        self.smoothing = nnx.List(
            conv(embed_dim, embed_dim, 3, dtype=jnp.float32, rngs=rngs) for _ in range(scales.convolutions)
        )

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Refuses: how the codes of all scales learn is not implemented."""
        raise UserError("model.quantizer scales is for imported codecs: it cannot be trained")

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents of the last scale's size into ``[B, L]`` int32 tokens."""
        rest = latents.astype(jnp.float32)
        batch, dimensions = rest.shape[0], rest.shape[-1]
        found = []
        for scale, side in enumerate(self.scales.sides):
            pooled = _resize(rest, area_weights(rest.shape[1], side))  # (B, side, side, D)
            tokens = nearest_code(pooled.reshape(-1, dimensions), self.codebook[...]).reshape(batch, -1)
            found.append(tokens)
            rest = rest - self._contribution(tokens, scale)
        return jnp.concatenate(found, axis=1)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, L]`` tokens into ``[B, h, w, D]``, the sum of what all scales give."""
        ends = np.cumsum([side * side for side in self.scales.sides])
        parts = jnp.split(tokens, ends[:-1], axis=1)
        return sum(
            (self._contribution(part, scale) for scale, part in enumerate(parts[1:], 1)),
            start=self._contribution(parts[0], 0),
        )

    def code_vectors(self, size: int) -> jax.Array:
        """Returns the codebook ``[K, D]`` that all scales share; none of its rows is decoded by itself."""
        return self.codebook[...]

    def _contribution(self, tokens: jax.Array, scale: int) -> jax.Array:
        """Turns one scale's tokens ``[B, side * side]`` into what it adds, ``[B, h, w, D]``."""
        side, full = self.scales.sides[scale], self.scales.sides[-1]
        codes = self.codebook[...][tokens].reshape(len(tokens), side, side, -1)
        codes = _resize(codes, cubic_weights(side, full))
        smooth = self.smoothing[self._shared(scale)](codes)
        return codes * (1 - SMOOTHED_SHARE) + smooth * SMOOTHED_SHARE

    def _shared(self, scale: int) -> int:
        """Returns which convolution a scale takes: the one whose tick is nearest to its place in [0, 1]."""
        count = self.scales.convolutions
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count  # as the published code has it
        ticks = np.linspace(margin, 1 - margin, count)
        return int(np.argmin(np.abs(ticks - scale / max(1, len(self.scales.sides) - 1))))


def _resize(x: jax.Array, weights: np.ndarray) -> jax.Array:
    """Applies ``[to, from]`` weights to height and width of ``[B, from, from, D]``."""
    if weights.shape[0] == weights.shape[1]:
        return x
    return jnp.einsum("ph,qw,bhwd->bpqd", weights, weights, x, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def area_weights(size: int, to: int) -> np.ndarray:
    """Returns ``[to, size]`` averages over windows that cover all and may overlap: torch's ``area``."""
    weights = np.zeros((to, size))
    for row in range(to):
        start, end = row * size // to, -(-(row + 1) * size // to)
        weights[row, start:end] = 1 / (end - start)
    return weights.astype(np.float32)


@functools.cache
def cubic_weights(size: int, to: int) -> np.ndarray:
    """Returns ``[to, size]`` weights of cubic convolution, edges repeated, pixel centres at halves."""
    weights = np.zeros((to, size))
    for row in range(to):
        place = (row + 0.5) * size / to - 0.5
        first = math.floor(place)
        for tap in range(first - 1, first + 3):
            weights[row, min(max(tap, 0), size - 1)] += _cubic(abs(place - tap))
    return weights.astype(np.float32)


def _cubic(distance: float) -> float:
    """Evaluates the cubic kernel at a distance of 0 to 2."""
    if distance <= 1:
        return ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    return CUBIC * (((distance - 5) * distance + 8) * distance - 4)

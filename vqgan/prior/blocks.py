"""Blocks of a prior's transformer, pre-norm, in two layouts.

``llama``: RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), rotary positions in two dimensions,
normalised queries and keys (arXiv 2302.05442), no biases. ``gpt``: LayerNorm, GELU, and positions that were
added before, as in the prior of *Taming Transformers* (arXiv 2012.09841).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.config import PriorConfig
from vqgan.prior.positions import rotate

STANDARD_DEVIATION = 0.02  # of initial weights, as in GPT-2
EPSILON = 1e-5


class LayerCache(NamedTuple):
    """Keys and values of one layer, ``[B, heads, P + L, head_width]`` each: in this order a product with one
    query moves nothing."""

    keys: jax.Array
    values: jax.Array


class Block(nnx.Module):
    """Attention and a feed-forward part, each added to its input."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = make_norm(config, dtype, rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = make_norm(config, dtype, rngs)
        kind = GatedFeedForward if config.block == "llama" else FeedForward
        self.feed_forward: GatedFeedForward | FeedForward = kind(config, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """``[B, T, D]`` to the same shape, all positions of a sequence at once."""
        x = x + self.dropout(self.attention(self.attention_norm(x), angles))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def extend(
        self, x: jax.Array, angles: jax.Array | None, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """The same for positions from ``start`` on, the ones before being in the cache."""
        attended, cache = self.attention.extend(self.attention_norm(x), angles, start, cache)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, has_bias = config.width, config.block == "gpt"
        self.query = _linear(width, width, has_bias, dtype, rngs)
        self.key = _linear(width, width, has_bias, dtype, rngs)
        self.value = _linear(width, width, has_bias, dtype, rngs)
        self.out = _linear(width, width, has_bias, dtype, rngs, depth=config.layers)
        normalised = config.block == "llama"
        self.query_norm = _rms_norm(config.head_width, dtype, rngs) if normalised else None
        self.key_norm = _rms_norm(config.head_width, dtype, rngs) if normalised else None

    def __call__(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """``[B, T, D]`` to the same shape."""
        query, key, value = self._projected(x, angles)
        attended = jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=self.config.is_causal,
            implementation=_implementation(self.dtype, self.config.head_width),
        )
        return self._joined(attended)

    def extend(
        self, x: jax.Array, angles: jax.Array | None, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Attention of some positions to themselves and to all before them."""
        query, key, value = self._projected(x, angles)
        query, key, value = (part.swapaxes(1, 2) for part in (query, key, value))  # (B, heads, T, head_width)
        keys = jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), (0, 0, start, 0))
        values = jax.lax.dynamic_update_slice(
            cache.values, value.astype(cache.values.dtype), (0, 0, start, 0)
        )
        seen = jnp.arange(keys.shape[2])[None] <= (start + jnp.arange(x.shape[1]))[:, None]  # (T, P + L)
        attended = _attended(query, keys, values, seen)
        return self._joined(attended.swapaxes(1, 2)), LayerCache(keys, values)

    def _projected(self, x: jax.Array, angles: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, ``[B, T, heads, head_width]`` each."""
        shape = (*x.shape[:2], self.config.heads, self.config.head_width)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return query, key, value

    def _joined(self, attended: jax.Array) -> jax.Array:
        out: jax.Array = self.out(attended.reshape(*attended.shape[:2], -1))
        return out


class GatedFeedForward(nnx.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, hidden = config.width, config.feed_forward_width
        self.gate = _linear(width, hidden, False, dtype, rngs)
        self.up = _linear(width, hidden, False, dtype, rngs)
        self.down = _linear(hidden, width, False, dtype, rngs, depth=config.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        out: jax.Array = self.down(nnx.silu(self.gate(x)) * self.up(x))
        return out


class FeedForward(nnx.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, hidden = config.width, config.feed_forward_width
        self.up = _linear(width, hidden, True, dtype, rngs)
        self.down = _linear(hidden, width, True, dtype, rngs, depth=config.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        out: jax.Array = self.down(jax.nn.gelu(self.up(x), approximate=False))
        return out


def _linear(
    inputs: int, outputs: int, has_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs, depth: int | None = None
) -> nnx.Linear:
    """A linear layer. Those that end a branch, of which there are ``2 * depth``, start smaller by the root
    of that number, so that the sum of all branches does not grow with depth (GPT-2's rule)."""
    deviation = STANDARD_DEVIATION if depth is None else STANDARD_DEVIATION / math.sqrt(2 * depth)
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=has_bias,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(deviation),
        rngs=rngs,
    )


def make_norm(config: PriorConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    if config.block == "llama":
        return _rms_norm(config.width, dtype, rngs)
    # The fast variance, E[x^2] - E[x]^2, cancels digits.
    return nnx.LayerNorm(config.width, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, rngs=rngs)


def _rms_norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)


def _attended(query: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention of some queries to cached keys; products and softmax in float32, as in
    :func:`jax.nn.dot_product_attention`, whose order of axes would make it copy the cache for each token.

    Args:
      query: ``[B, heads, T, head_width]``.
      keys: ``[B, heads, S, head_width]``, as ``values``.
      values: of the keys.
      seen: bool ``[T, S]``.

    Returns:
      The shape and type of ``query``.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", query, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[None, None], scores / math.sqrt(query.shape[-1]), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, values)


def _implementation(dtype: DTypeLike, head_width: int) -> Literal["cudnn"] | None:
    """cuDNN's fused attention where it exists: on NVIDIA GPUs, for 16-bit types and the widths of heads that
    it knows on all of them."""
    is_known = jnp.dtype(dtype).itemsize == 2 and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if is_known and "NVIDIA" in jax.devices()[0].device_kind else None

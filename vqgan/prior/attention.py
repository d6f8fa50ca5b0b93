"""Attention of a prior: over whole sequences, and from some positions to a cache of keys and values."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.building_blocks import apply_rotary, linear, norm
from vqgan.prior.config import PriorConfig

ATTENTION_PARTS = 4
"""Parts of a causal sequence that attend one after the other on a CPU: each skips what lies after it."""


class LayerCache(NamedTuple):
    """Keys and values of one layer, ``[B, heads, P + L, head_width]`` each.

    In this order a product with one query moves nothing.
    """

    keys: jax.Array
    values: jax.Array


PriorCache = tuple[LayerCache, ...]
"""Keys and values of all layers."""


class Positions(NamedTuple):
    """What attention knows of the T positions that it is given, and of the S that it looks at.

    Attributes:
      angles: ``[T, D / 2]`` of rotary positions; None without them.
      turned: ``[T]``, 0 at positions whose queries and keys are blank, else 1; None where none are.
      known: bool ``[B, S]``, False where a text is padded; None for priors without.
    """

    angles: jax.Array | None
    turned: jax.Array | None
    known: jax.Array | None


class PriorAttention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, has_bias = config.width, config.block == "gpt"
        self.query = linear(width, width, has_bias, dtype, rngs)
        self.key = linear(width, width, has_bias, dtype, rngs)
        self.value = linear(width, width, has_bias, dtype, rngs)
        self.out = linear(width, width, has_bias, dtype, rngs, depth=config.layers)
        normalised = config.block == "llama" and config.query_key_norm
        self.query_norm = norm(config.head_width, config, dtype, rngs) if normalised else None
        self.key_norm = norm(config.head_width, config, dtype, rngs) if normalised else None

    def __call__(self, x: jax.Array, positions: Positions) -> jax.Array:
        """Attends within whole sequences, ``[B, T, D]`` to the same shape."""
        query, key, value = self._project(x, positions)
        known = positions.known
        if self.config.is_causal and jax.default_backend() == "cpu":
            attended = _attend_causally(query, key, value, known)
        else:
            attended = jax.nn.dot_product_attention(
                query,
                key,
                value,
                mask=None if known is None else _with_itself(known, jnp.arange(x.shape[1]))[:, None],
                is_causal=self.config.is_causal,
                implementation=_implementation(self.dtype, self.config.head_width) if known is None else None,
            )
        return self._merge_heads(attended)  # of (B, T, heads, head_width)

    def call_cached(
        self, x: jax.Array, positions: Positions, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Attends from positions ``start`` on to themselves and to all before them, which the cache holds."""
        query, key, value = self._project(x, positions)
        query, key, value = (part.swapaxes(1, 2) for part in (query, key, value))  # (B, heads, T, head_width)
        keys = jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), (0, 0, start, 0))
        values = jax.lax.dynamic_update_slice(
            cache.values, value.astype(cache.values.dtype), (0, 0, start, 0)
        )
        # The cache always has room for the whole sequence. What it holds after a query's own position is of
        # an earlier window, or zero: the mask leaves it out.
        at = start + jnp.arange(x.shape[1])
        seen = jnp.arange(keys.shape[2])[None] <= at[:, None]  # (T, P + L)
        if positions.known is not None:
            seen = seen[None] & _with_itself(positions.known, at)  # (B, T, P + L)
        attended = _attend(query, keys, values, seen)  # (B, heads, T, head_width)
        return self._merge_heads(attended.swapaxes(1, 2)), LayerCache(keys, values)

    def _project(self, x: jax.Array, positions: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values, ``[B, T, heads, head_width]`` each."""
        shape = (*x.shape[:2], self.config.heads, self.config.head_width)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if positions.angles is not None:
            query, key = (apply_rotary(part, positions.angles) for part in (query, key))
        if positions.turned is not None:
            query, key = (part * positions.turned[None, :, None, None] for part in (query, key))
        return query, key, value

    def _merge_heads(self, attended: jax.Array) -> jax.Array:
        out: jax.Array = self.out(attended.reshape(*attended.shape[:2], -1))
        return out


def _attend(query: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
    """Attends from some queries to cached keys, with products and softmax in float32.

    So does :func:`jax.nn.dot_product_attention`, but its order of axes would make it copy the cache for each
    token.

    Args:
      query: ``[B, heads, T, head_width]``.
      keys: ``[B, heads, S, head_width]``, as ``values``.
      values: of the keys.
      seen: bool ``[T, S]``, or of each sample ``[B, T, S]``.

    Returns:
      The shape and type of ``query``.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", query, keys, preferred_element_type=jnp.float32)
    seen = seen[:, None] if seen.ndim == 3 else seen[None, None]
    scores = jnp.where(seen, scores / math.sqrt(query.shape[-1]), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, values)


def _with_itself(known: jax.Array, at: jax.Array) -> jax.Array:
    """Returns what positions ``at``, ``[T]``, may look at by ``known``, ``[B, S]``: bool ``[B, T, S]``.

    Padding sees itself, so that its softmax is over something; nothing else sees it.
    """
    itself = at[:, None] == jnp.arange(known.shape[1])[None]  # (T, S)
    return known[:, None] | itself[None]


def _attend_causally(
    query: jax.Array, key: jax.Array, value: jax.Array, known: jax.Array | None = None
) -> jax.Array:
    """Attends from each position to itself and those before it, ``[B, T, heads, head_width]`` all.

    Half of a causal sequence's scores are masked. Where the sequence is cut into parts, most of these are
    never computed: a part attends to the keys up to its own end.
    """
    query, key, value = (part.swapaxes(1, 2) for part in (query, key, value))  # (B, heads, T, head_width)
    length = query.shape[2]
    size = -(-length // ATTENTION_PARTS)
    parts = []
    for start in range(0, length, size):
        end = min(start + size, length)
        at = jnp.arange(start, end)
        seen = jnp.arange(end)[None] <= at[:, None]  # (end - start, end)
        if known is not None:
            seen = seen[None] & _with_itself(known[:, :end], at)
        parts.append(_attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], seen))
    return jnp.concatenate(parts, axis=2).swapaxes(1, 2)


def _implementation(dtype: DTypeLike, head_width: int) -> Literal["cudnn"] | None:
    """Returns cuDNN's fused attention where it exists.

    That is on NVIDIA GPUs, for 16-bit types and the widths of heads that it knows on all of them.
    """
    is_known = jnp.dtype(dtype).itemsize == 2 and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if is_known and "NVIDIA" in jax.devices()[0].device_kind else None

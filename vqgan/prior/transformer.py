"""The transformer of a prior, from token grids to the distribution of each token, read from top to bottom.

Attention, feed-forward parts, blocks, and the model, of :mod:`vqgan.prior.building_blocks`. Blocks are
pre-norm, in two layouts. ``llama``: RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), rotary positions
in two dimensions, normalised queries and keys (arXiv 2302.05442), no biases. ``gpt``: LayerNorm, GELU, and
positions that were added before, as in the prior of *Taming Transformers* (arXiv 2012.09841).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.building_blocks import apply_rotary, embedding, gelu, linear, norm, product, rotary_table
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

    def __call__(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """Attends within whole sequences, ``[B, T, D]`` to the same shape."""
        query, key, value = self._project(x, angles)
        if self.config.is_causal and jax.default_backend() == "cpu":
            attended = _attend_causally(query, key, value)
        else:
            attended = jax.nn.dot_product_attention(
                query,
                key,
                value,
                is_causal=self.config.is_causal,
                implementation=_implementation(self.dtype, self.config.head_width),
            )
        return self._merge_heads(attended)  # of (B, T, heads, head_width)

    def call_cached(
        self, x: jax.Array, angles: jax.Array | None, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Attends from positions ``start`` on to themselves and to all before them, which the cache holds."""
        query, key, value = self._project(x, angles)
        query, key, value = (part.swapaxes(1, 2) for part in (query, key, value))  # (B, heads, T, head_width)
        keys = jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), (0, 0, start, 0))
        values = jax.lax.dynamic_update_slice(
            cache.values, value.astype(cache.values.dtype), (0, 0, start, 0)
        )
        # The cache always has room for the whole sequence. What it holds after a query's own position is of
        # an earlier window, or zero: the mask leaves it out.
        seen = jnp.arange(keys.shape[2])[None] <= (start + jnp.arange(x.shape[1]))[:, None]  # (T, P + L)
        attended = _attend(query, keys, values, seen)  # (B, heads, T, head_width)
        return self._merge_heads(attended.swapaxes(1, 2)), LayerCache(keys, values)

    def _project(self, x: jax.Array, angles: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values, ``[B, T, heads, head_width]`` each."""
        shape = (*x.shape[:2], self.config.heads, self.config.head_width)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = apply_rotary(query, angles), apply_rotary(key, angles)
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
      seen: bool ``[T, S]``.

    Returns:
      The shape and type of ``query``.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", query, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[None, None], scores / math.sqrt(query.shape[-1]), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, values)


def _attend_causally(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
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
        seen = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]  # (end - start, end)
        parts.append(_attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], seen))
    return jnp.concatenate(parts, axis=2).swapaxes(1, 2)


def _implementation(dtype: DTypeLike, head_width: int) -> Literal["cudnn"] | None:
    """Returns cuDNN's fused attention where it exists.

    That is on NVIDIA GPUs, for 16-bit types and the widths of heads that it knows on all of them.
    """
    is_known = jnp.dtype(dtype).itemsize == 2 and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if is_known and "NVIDIA" in jax.devices()[0].device_kind else None


class FeedForward(nnx.Module):
    """SwiGLU, ``down(silu(gate(x)) * up(x))``, or ``down(gelu(up(x)))`` with an exact GELU."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, hidden, has_bias = config.width, config.feed_forward_width, config.block == "gpt"
        self.gate = linear(width, hidden, False, dtype, rngs) if config.block == "llama" else None
        self.up = linear(width, hidden, has_bias, dtype, rngs)
        self.down = linear(hidden, width, has_bias, dtype, rngs, depth=config.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Transforms each position by itself, ``[B, T, D]`` to the same shape."""
        up = self.up(x)  # (B, T, hidden)
        inner = gelu(up) if self.gate is None else nnx.silu(self.gate(x)) * up
        out: jax.Array = self.down(inner)
        return out


class Block(nnx.Module):
    """Attention and a feed-forward part, each added to its input."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = norm(config.width, config, dtype, rngs)
        self.attention = PriorAttention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = norm(config.width, config, dtype, rngs)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """Transforms whole sequences, ``[B, T, D]`` to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x), angles))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def call_cached(
        self, x: jax.Array, angles: jax.Array | None, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Transforms positions from ``start`` on, the ones before being in the cache."""
        attended, cache = self.attention.call_cached(self.attention_norm(x), angles, start, cache)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache


class PriorTransformer(nnx.Module):
    """A prior over token grids.

    Call it for the logits of whole sequences. Sampling takes :meth:`prefix_inputs` and :meth:`token_inputs`
    to :meth:`prefill`, which reads the beginning of a sequence into a cache, then to :meth:`decode_step`,
    which reads what follows.
    """

    def __init__(
        self, config: PriorConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.token_embedding = embedding(config.vocabulary, config, rngs)
        self.class_embedding = embedding(config.classes + 1, config, rngs)  # the last row: no class
        codes, positions = config.condition_codebook_size, config.prefix + config.length
        self.condition_embedding = embedding(codes, config, rngs) if codes else None
        self.position_embedding = embedding(positions, config, rngs) if config.block == "gpt" else None
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = norm(config.width, config, dtype, rngs)
        self.head = nnx.Linear(
            config.width,
            config.codebook_size,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.zeros,  # every code equally likely at first
            dot_general=product,
            rngs=rngs,
        )

    def __call__(
        self, tokens: jax.Array, labels: jax.Array | None = None, condition: jax.Array | None = None
    ) -> jax.Array:
        """Returns the logits of every token of the grid.

        Those of an autoregressive prior at position k depend on the tokens before k only; those of a
        masked one on all tokens, of which hidden ones are ``codebook_size``.

        Args:
          tokens: int32 ``[B, L]``.
          labels: int32 ``[B]`` in ``[0, classes]``; ``classes`` is no class, which None means for all.
          condition: int32 ``[B, Lc]`` tokens of the condition grid, where the prior has one.

        Returns:
          float32 ``[B, L, K]``.
        """
        prefix = self.prefix_inputs(len(tokens), labels, condition)
        read = tokens[:, :-1] if self.config.is_causal else tokens  # nothing follows the last one
        x = jnp.concatenate([prefix, self.token_inputs(read, 0)], axis=1)  # (B, T, D)
        x = self.dropout(x)
        angles = self._angles(0, x.shape[1])
        for block in self.blocks:
            x = nnx.remat(Block.__call__)(block, x, angles) if self.remat else block(x, angles)
        # A causal position predicts the token after it: the prefix's last one predicts the grid's first.
        first = self.config.prefix - 1 if self.config.is_causal else self.config.prefix
        return self.logits(x[:, first:])

    def prefix_inputs(
        self, batch: int, labels: jax.Array | None = None, condition: jax.Array | None = None
    ) -> jax.Array:
        """Returns inputs of the positions before the first token, ``[B, P, D]``.

        Raises:
          ValueError: the prior has a condition grid and none is given, or the other way round.
        """
        if (condition is None) != (self.condition_embedding is None):
            given = "no condition" if condition is None else "a condition"
            raise ValueError(f"{given} given to a prior that is made otherwise")
        parts = []
        if condition is not None and self.condition_embedding is not None:
            parts.append(jnp.take(self.condition_embedding[...], condition, axis=0))  # (B, Lc, D)
        if labels is None:
            labels = jnp.full((batch,), self.config.classes, jnp.int32)
        if self.config.start_token:
            parts.append(jnp.take(self.class_embedding[...], labels, axis=0)[:, None])  # (B, 1, D)
        return self._placed(jnp.concatenate(parts, axis=1), 0)

    def token_inputs(self, tokens: jax.Array, start: int | jax.Array) -> jax.Array:
        """Returns inputs ``[B, T, D]`` of tokens ``[B, T]``, the first being token ``start`` of the grid."""
        embedded = jnp.take(self.token_embedding[...], tokens, axis=0)  # (B, T, D)
        return self._placed(embedded, self.config.prefix + jnp.asarray(start))

    def empty_cache(self, batch: int) -> PriorCache:
        """Returns a cache in which nothing is remembered."""
        config = self.config
        shape = (batch, config.heads, config.prefix + config.length, config.head_width)
        empty = LayerCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return (empty,) * config.layers

    def prefill(self, inputs: jax.Array, cache: PriorCache) -> tuple[jax.Array, PriorCache]:
        """Reads the beginning of an autoregressive sequence into a cache.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`, from position 0 on.
          cache: whatever it holds is overwritten, or not looked at.

        Returns:
          Features ``[B, T, D]``, of which :meth:`logits` makes those of the token after each position, for
          the few that are wanted; and the cache.
        """
        return self._call_cached(inputs, jnp.asarray(0), cache)

    def decode_step(
        self, inputs: jax.Array, start: int | jax.Array, cache: PriorCache
    ) -> tuple[jax.Array, PriorCache]:
        """Reads some more positions of an autoregressive sequence, usually one.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`.
          start: position of the first of them in the sequence, 0 for the prefix's first; those before it
            are in the cache. ``start + T`` is at most P + L.
          cache: of the positions before; what it holds of later ones is not looked at.

        Returns:
          float32 ``[B, T, K]`` logits of the token after each position, and the cache with them.
        """
        features, cache = self._call_cached(inputs, jnp.asarray(start), cache)
        return self.logits(features), cache

    def logits(self, features: jax.Array) -> jax.Array:
        """Maps features ``[..., D]`` of positions to float32 logits ``[..., K]``."""
        logits: jax.Array = self.head(self.norm(features)).astype(jnp.float32)
        return logits

    def _call_cached(self, x: jax.Array, start: jax.Array, cache: PriorCache) -> tuple[jax.Array, PriorCache]:
        angles = self._angles(start, x.shape[1])
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block.call_cached(x, angles, start, layer)
            layers.append(layer)
        return x, tuple(layers)

    def _placed(self, x: jax.Array, start: int | jax.Array) -> jax.Array:
        """Adds learned positions, where there are any."""
        if self.position_embedding is not None:
            rows = jax.lax.dynamic_slice_in_dim(self.position_embedding[...], start, x.shape[1])
            x = x + rows[None]
        return x.astype(self.dtype)

    def _angles(self, start: int | jax.Array, count: int) -> jax.Array | None:
        if self.config.block != "llama":
            return None
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(rotary_table(self.config)), start, count)

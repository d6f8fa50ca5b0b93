"""The transformer of a prior: token grids to the distribution of each token.

Pre-norm blocks in two layouts. ``llama``: RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), rotary
positions in two dimensions, normalised queries and keys (arXiv 2302.05442), no biases. ``gpt``: LayerNorm,
GELU and learned positions, as in the prior of *Taming Transformers* (arXiv 2012.09841).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.config import PriorConfig
from vqgan.prior.positions import rotary_table, rotate

STANDARD_DEVIATION = 0.02  # of initial weights, as in GPT-2
EPSILON = 1e-5


class LayerCache(NamedTuple):
    """Keys and values of one layer, ``[B, P + L, heads, head_width]`` each."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[LayerCache, ...]
"""Keys and values of all layers."""


class Prior(nnx.Module):
    """A prior over token grids.

    Call it for the logits of whole sequences; sampling uses :meth:`prefix_inputs`, :meth:`token_inputs` and
    :meth:`extend`, which takes a few positions at a time and remembers the ones before.
    """

    def __init__(
        self, config: PriorConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.token_embedding = _embedding(config.vocabulary, config, rngs)
        self.class_embedding = _embedding(config.classes + 1, config, rngs)  # the last row: no class
        conditioned = config.condition_codebook_size > 0
        self.condition_embedding = (
            _embedding(config.condition_codebook_size, config, rngs) if conditioned else None
        )
        learned = config.block == "gpt"
        self.position_embedding = _embedding(config.prefix + config.length, config, rngs) if learned else None
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = _norm(config, dtype, rngs)
        self.head = nnx.Linear(
            config.width,
            config.codebook_size,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.zeros,  # every code equally likely at first
            rngs=rngs,
        )

    def __call__(
        self, tokens: jax.Array, labels: jax.Array | None = None, condition: jax.Array | None = None
    ) -> jax.Array:
        """Logits of every token of the grid.

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
        read = tokens[:, :-1] if self.config.is_causal else tokens
        x = jnp.concatenate([prefix, self.token_inputs(read, 0)], axis=1)  # (B, T, D)
        x = self.dropout(x)
        angles = self._angles(0, x.shape[1])
        for block in self.blocks:
            x = nnx.remat(Block.__call__)(block, x, angles) if self.remat else block(x, angles)
        first = self.config.prefix - 1 if self.config.is_causal else self.config.prefix
        return self._logits(x[:, first:])

    def prefix_inputs(
        self, batch: int, labels: jax.Array | None = None, condition: jax.Array | None = None
    ) -> jax.Array:
        """Inputs of the positions before the first token, ``[B, P, D]``.

        Raises:
          ValueError: the prior has a condition grid and none is given, or the other way round.
        """
        if (condition is None) != (self.condition_embedding is None):
            given = "no condition" if condition is None else "a condition"
            raise ValueError(f"{given} given to a prior that is made otherwise")
        if labels is None:
            labels = jnp.full((batch,), self.config.classes, jnp.int32)
        start = jnp.take(self.class_embedding[...], labels, axis=0)[:, None]  # (B, 1, D)
        parts = [start]
        if condition is not None and self.condition_embedding is not None:
            parts.insert(0, jnp.take(self.condition_embedding[...], condition, axis=0))
        return self._placed(jnp.concatenate(parts, axis=1), 0)

    def token_inputs(self, tokens: jax.Array, start: int | jax.Array) -> jax.Array:
        """Inputs ``[B, T, D]`` of tokens ``[B, T]``, the first of which is token ``start`` of the grid."""
        return self._placed(
            jnp.take(self.token_embedding[...], tokens, axis=0), self.config.prefix + jnp.asarray(start)
        )

    def empty_cache(self, batch: int) -> Cache:
        """A cache in which nothing is remembered."""
        config = self.config
        shape = (batch, config.prefix + config.length, config.heads, config.head_width)
        empty = LayerCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return (empty,) * config.layers

    def extend(self, inputs: jax.Array, start: int | jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads some more positions of an autoregressive sequence.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`.
          start: position of the first of them in the sequence, 0 for the prefix's first; those before it
            are in the cache.
          cache: of the positions before.

        Returns:
          float32 ``[B, T, K]`` logits of the token after each position, and the cache with them.
        """
        start = jnp.asarray(start)
        angles = self._angles(start, inputs.shape[1])
        x, extended = inputs, []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block.extend(x, angles, start, layer)
            extended.append(layer)
        return self._logits(x), tuple(extended)

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

    def _logits(self, x: jax.Array) -> jax.Array:
        logits: jax.Array = self.head(self.norm(x)).astype(jnp.float32)
        return logits


class Block(nnx.Module):
    """Attention and a feed-forward part, each added to its input."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, dtype, rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = _norm(config, dtype, rngs)
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
            query, key, value, is_causal=self.config.is_causal, implementation=_implementation(self.dtype)
        )
        return self._joined(attended)

    def extend(
        self, x: jax.Array, angles: jax.Array | None, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Attention of some positions to themselves and to all before them."""
        query, key, value = self._projected(x, angles)
        at = (0, start, 0, 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), at)
        values = jax.lax.dynamic_update_slice(cache.values, value.astype(cache.values.dtype), at)
        positions = start + jnp.arange(x.shape[1])
        seen = jnp.arange(keys.shape[1])[None] <= positions[:, None]  # (T, P + L)
        attended = jax.nn.dot_product_attention(query, keys, values, mask=seen[None, None])
        return self._joined(attended), LayerCache(keys, values)

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


def _embedding(rows: int, config: PriorConfig, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    init = nnx.initializers.normal(STANDARD_DEVIATION)
    return nnx.Param(init(rngs.params(), (rows, config.width)))


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


def _norm(config: PriorConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    if config.block == "llama":
        return _rms_norm(config.width, dtype, rngs)
    # The fast variance, E[x^2] - E[x]^2, cancels digits.
    return nnx.LayerNorm(config.width, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, rngs=rngs)


def _rms_norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)


def _implementation(dtype: DTypeLike) -> Literal["cudnn"] | None:
    """cuDNN's fused attention where it exists: on GPUs, for 16-bit types."""
    is_half = jnp.dtype(dtype).itemsize == 2
    return "cudnn" if jax.default_backend() == "gpu" and is_half else None

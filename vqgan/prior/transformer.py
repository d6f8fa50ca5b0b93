"""The transformer of a prior, from token grids to the distribution of each token, read from top to bottom.

Feed-forward parts, blocks, and the model, of :mod:`vqgan.prior.attention` and the layers of
:mod:`vqgan.prior.building_blocks`. Blocks are
pre-norm, in two layouts. ``llama``: RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), rotary positions
in two dimensions, normalised queries and keys (arXiv 2302.05442), no biases. ``gpt``: LayerNorm, GELU, and
positions that were added before, as in the prior of *Taming Transformers* (arXiv 2012.09841).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.attention import LayerCache, Positions, PriorAttention, PriorCache
from vqgan.prior.building_blocks import (
    TextEmbedding,
    embedding,
    gelu,
    linear,
    norm,
    product,
    rotary_table,
)
from vqgan.prior.config import PriorConfig
from vqgan.prior.text import Text


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

    def __call__(self, x: jax.Array, positions: Positions) -> jax.Array:
        """Transforms whole sequences, ``[B, T, D]`` to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x), positions))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def call_cached(
        self, x: jax.Array, positions: Positions, start: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        """Transforms positions from ``start`` on, the ones before being in the cache."""
        attended, cache = self.attention.call_cached(self.attention_norm(x), positions, start, cache)
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
        self.text = TextEmbedding(config, dtype=dtype, rngs=rngs) if config.text_length else None

    def __call__(
        self,
        tokens: jax.Array,
        labels: jax.Array | None = None,
        condition: jax.Array | None = None,
        text: Text | None = None,
    ) -> jax.Array:
        """Returns the logits of every token of the grid.

        Those of an autoregressive prior at position k depend on the tokens before k only; those of a
        masked one on all tokens, of which hidden ones are ``codebook_size``.

        Args:
          tokens: int32 ``[B, L]``.
          labels: int32 ``[B]`` in ``[0, classes]``; ``classes`` is no class, which None means for all.
          condition: int32 ``[B, Lc]`` tokens of the condition grid, where the prior has one.
          text: of a prior with texts; None for none.

        Returns:
          float32 ``[B, L, K]``.
        """
        text = self.complete_text(text, len(tokens))
        prefix = self.prefix_inputs(len(tokens), labels, condition, text)
        read = tokens[:, :-1] if self.config.is_causal else tokens  # nothing follows the last one
        x = jnp.concatenate([prefix, self.token_inputs(read, 0)], axis=1)  # (B, T, D)
        x = self.dropout(x)
        positions = self._positions(0, x.shape[1], x.shape[1], text)
        for block in self.blocks:
            x = nnx.remat(Block.__call__)(block, x, positions) if self.remat else block(x, positions)
        # A causal position predicts the token after it: the prefix's last one predicts the grid's first.
        first = self.config.prefix - 1 if self.config.is_causal else self.config.prefix
        return self.logits(x[:, first:])

    def complete_text(self, text: Text | None, batch: int) -> Text | None:
        """Returns texts as the other methods take them: rows without any have what stands for none."""
        return None if self.text is None else self.text.complete(text, batch)

    def prefix_inputs(
        self,
        batch: int,
        labels: jax.Array | None = None,
        condition: jax.Array | None = None,
        text: Text | None = None,
    ) -> jax.Array:
        """Returns inputs of the positions before the first token, ``[B, P, D]``; of texts that are complete.

        Raises:
          ValueError: the prior has a condition grid and none is given, or the other way round.
        """
        if (condition is None) != (self.condition_embedding is None):
            given = "no condition" if condition is None else "a condition"
            raise ValueError(f"{given} given to a prior that is made otherwise")
        parts = []
        if text is not None and self.text is not None:
            parts.append(self.text(text))  # (B, T, D)
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

    def prefill(
        self, inputs: jax.Array, cache: PriorCache, text: Text | None = None
    ) -> tuple[jax.Array, PriorCache]:
        """Reads the beginning of an autoregressive sequence into a cache.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`, from position 0 on.
          cache: whatever it holds is overwritten, or not looked at.
          text: complete, of a prior with texts.

        Returns:
          Features ``[B, T, D]``, of which :meth:`logits` makes those of the token after each position, for
          the few that are wanted; and the cache.
        """
        return self._call_cached(inputs, jnp.asarray(0), cache, text)

    def decode_step(
        self, inputs: jax.Array, start: int | jax.Array, cache: PriorCache, text: Text | None = None
    ) -> tuple[jax.Array, PriorCache]:
        """Reads some more positions of an autoregressive sequence, usually one.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`.
          start: position of the first of them in the sequence, 0 for the prefix's first; those before it
            are in the cache. ``start + T`` is at most P + L.
          cache: of the positions before; what it holds of later ones is not looked at.
          text: as for :meth:`prefill`.

        Returns:
          float32 ``[B, T, K]`` logits of the token after each position, and the cache with them.
        """
        features, cache = self._call_cached(inputs, jnp.asarray(start), cache, text)
        return self.logits(features), cache

    def logits(self, features: jax.Array) -> jax.Array:
        """Maps features ``[..., D]`` of positions to float32 logits ``[..., K]``."""
        logits: jax.Array = self.head(self.norm(features)).astype(jnp.float32)
        return logits

    def _call_cached(
        self, x: jax.Array, start: jax.Array, cache: PriorCache, text: Text | None
    ) -> tuple[jax.Array, PriorCache]:
        positions = self._positions(start, x.shape[1], cache[0].keys.shape[2], text)
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block.call_cached(x, positions, start, layer)
            layers.append(layer)
        return x, tuple(layers)

    def _placed(self, x: jax.Array, start: int | jax.Array) -> jax.Array:
        """Adds learned positions, where there are any."""
        if self.position_embedding is not None:
            rows = jax.lax.dynamic_slice_in_dim(self.position_embedding[...], start, x.shape[1])
            x = x + rows[None]
        return x.astype(self.dtype)

    def _positions(self, start: int | jax.Array, count: int, keys: int, text: Text | None) -> Positions:
        """Returns what attention knows of ``count`` positions that look at the first ``keys`` ones."""
        angles = turned = known = None
        if self.config.block == "llama":
            table = jnp.asarray(rotary_table(self.config))
            angles = jax.lax.dynamic_slice_in_dim(table, start, count)
        if self.config.blank_prefix:
            turned = ((start + jnp.arange(count)) >= self.config.prefix).astype(self.dtype)
        if text is not None:
            known = jnp.pad(text.mask, ((0, 0), (0, keys - text.mask.shape[1])), constant_values=True)
        return Positions(angles, turned, known)

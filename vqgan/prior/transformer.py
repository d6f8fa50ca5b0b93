"""The transformer of a prior: token grids to the distribution of each token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.blocks import STANDARD_DEVIATION, Block, LayerCache, make_norm
from vqgan.prior.config import PriorConfig
from vqgan.prior.positions import rotary_table

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
        self.norm = make_norm(config, dtype, rngs)
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
        return self.logits(x[:, first:])

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
        parts = [start] if self.config.start_token else []
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
        shape = (batch, config.heads, config.prefix + config.length, config.head_width)
        empty = LayerCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return (empty,) * config.layers

    def extend(self, inputs: jax.Array, start: int | jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads some more positions of an autoregressive sequence.

        Args:
          inputs: ``[B, T, D]`` of :meth:`prefix_inputs` and :meth:`token_inputs`.
          start: position of the first of them in the sequence, 0 for the prefix's first; those before it
            are in the cache. ``start + T`` is at most P + L.
          cache: of the positions before; what it holds of later ones is not looked at.

        Returns:
          float32 ``[B, T, K]`` logits of the token after each position, and the cache with them.
        """
        features, cache = self.read(inputs, start, cache)
        return self.logits(features), cache

    def read(self, inputs: jax.Array, start: int | jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """:meth:`extend` up to the features ``[B, T, D]`` that :meth:`logits` takes, for a caller who wants
        the logits of few of many positions."""
        start = jnp.asarray(start)
        angles = self._angles(start, inputs.shape[1])
        x, extended = inputs, []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block.extend(x, angles, start, layer)
            extended.append(layer)
        return x, tuple(extended)

    def logits(self, features: jax.Array) -> jax.Array:
        """Features ``[..., D]`` of positions to float32 ``[..., K]``."""
        logits: jax.Array = self.head(self.norm(features)).astype(jnp.float32)
        return logits

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


def _embedding(rows: int, config: PriorConfig, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    init = nnx.initializers.normal(STANDARD_DEVIATION)
    return nnx.Param(init(rngs.params(), (rows, config.width)))

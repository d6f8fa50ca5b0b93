"""Sampling of grids larger than the one that a prior was trained on.

The sliding attention window of *Taming Transformers* (arXiv 2012.09841, section 3.2): each token is drawn
from a window of the trained size, placed so that the token is as near to its centre as the borders allow.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.errors import UserError
from vqgan.prior.choosing import sample_keys
from vqgan.prior.config import PriorConfig
from vqgan.prior.request import Request, SampleInputs, check_request, check_settings
from vqgan.prior.sampling import Draws, RasterKind, Sampler, kind_of
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.prior.transformer import Cache, Prior


class Place(NamedTuple):
    """Where a token is drawn: int32 scalars.

    Attributes:
      top: row of the large grid at which the window begins.
      left: column at which it begins.
      local: the token's place in the window, in raster order.
    """

    top: jax.Array
    left: jax.Array
    local: jax.Array


class State(NamedTuple):
    """What the loop hands on: the large grid's tokens, the last token's place, the cache of its window."""

    tokens: jax.Array
    place: Place
    cache: Cache


def sample_large(
    sampler: Sampler, grid: tuple[int, int], request: Request, settings: SamplingConfig
) -> np.ndarray:
    """Token grids larger than the trained one. The trained grid gives what :meth:`Sampler.sample` gives.

    A token sees the earlier tokens inside its window only. Where the window stays, only the token before is
    read; where it moves, all of its earlier tokens are: a token then costs a pass over much of the window.

    Args:
      sampler: of an autoregressive prior.
      grid: ``(H, W)``, neither side smaller than trained.
      request: what to sample, ``known`` being ``[B, H * W]``. A condition covers the large grid: its tokens
        are ``[B, H * W * n]``, where the trained condition grid has n tokens for each of the grid's.
      settings: how tokens are drawn; guidance runs along the large grid.

    Returns:
      int32 ``[B, H, W]`` in ``[0, codebook_size)``.

    Raises:
      UserError: a request, a grid or settings that this prior cannot serve.
      ValueError: the sampler's weights were released.
    """
    if tuple(grid) == sampler.config.grid:
        return sampler.sample(request, settings)
    config = enlarged(sampler.config, grid)
    check_request(config, request)
    check_settings(config, settings)
    return sampler.run(WindowLoop(kind_of(request, settings), (grid[0], grid[1])), config, request, settings)


def enlarged(config: PriorConfig, grid: tuple[int, int]) -> PriorConfig:
    """The configuration with a larger grid, and a condition grid that grows with it.

    Raises:
      UserError: a grid smaller than trained, or a condition grid that windows cannot cut.
    """
    if grid[0] < config.grid[0] or grid[1] < config.grid[1]:
        raise UserError(
            f"a grid of {grid[0]}x{grid[1]} tokens is smaller than the {config.grid[0]}x{config.grid[1]} "
            "that this prior was trained on: give one at least as large"
        )
    if any(c % g for c, g in zip(config.condition_grid, config.grid, strict=True)):
        raise UserError(
            f"a window of {config.grid[0]}x{config.grid[1]} tokens cannot slide over a condition of "
            f"{config.condition_grid[0]}x{config.condition_grid[1]}: sample the trained grid"
        )
    condition = (
        grid[0] * (config.condition_grid[0] // config.grid[0]),
        grid[1] * (config.condition_grid[1] // config.grid[1]),
    )
    return dataclasses.replace(config, grid=grid, condition_grid=condition)


def place_of(k: jax.Array, grid: tuple[int, int], window: tuple[int, int]) -> Place:
    """Where token k of the large grid is drawn."""
    row, column = k // grid[1], k % grid[1]
    top = jnp.clip(row - window[0] // 2, 0, grid[0] - window[0])
    left = jnp.clip(column - window[1] // 2, 0, grid[1] - window[1])
    return Place(top, left, (row - top) * window[1] + column - left)


@dataclasses.dataclass(frozen=True)
class WindowLoop:
    """Token after token over a large grid."""

    kind: RasterKind
    grid: tuple[int, int]

    def __call__(self, prior: Prior, inputs: SampleInputs, draws: Draws) -> jax.Array:
        """int32 ``[B, H * W]``."""
        kind, window, length = self.kind, prior.config.grid, prior.config.length
        seeds, labels, condition, known = jax.tree.map(jnp.asarray, inputs)
        keys = sample_keys(seeds)
        # How many of its tokens are read where a window has moved: a token on the middle row, where most
        # are, needs those above and beside it only.
        counts = sorted({min((window[0] // 2 + 1) * window[1], length) - 1, length - 1})

        def step(k: jax.Array, state: State) -> State:
            place = place_of(k, self.grid, window)
            start = partial(self._start, prior, labels, condition, place)
            logits, cache = jax.lax.switch(
                _branch(place, state.place, counts),
                [partial(self._extend, prior, state, place, k)]
                + [partial(self._reread, prior, state, place, start, count) for count in counts],
            )
            token = kind.choose(logits, keys, k, draws)
            return State(state.tokens.at[:, k].set(token), place, cache)

        nowhere = Place(jnp.int32(-1), jnp.int32(-1), jnp.int32(-1))
        first = State(known, nowhere, prior.empty_cache(len(kind.halves(known))))
        return jax.lax.fori_loop(kind.given, known.shape[1], step, first).tokens

    def _extend(self, prior: Prior, state: State, place: Place, k: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits of token k, whose window is that of the token before: only that one is new."""
        previous = jax.lax.dynamic_slice_in_dim(state.tokens, k - 1, 1, axis=1)
        x = prior.token_inputs(self.kind.halves(previous), place.local - 1)
        logits, cache = prior.extend(x, prior.config.prefix + place.local - 1, state.cache)
        return logits[:, 0], cache

    def _reread(
        self, prior: Prior, state: State, place: Place, start: Callable[[], jax.Array], count: int
    ) -> tuple[jax.Array, Cache]:
        """Logits of a token whose window is new: the window's first ``count`` tokens are read.

        Those of them that are not drawn yet come after the token, so that nothing depends on them.
        """
        window = _cut(state.tokens, self.grid, place.top, place.left, prior.config.grid)
        seen = jnp.maximum(window[:, :count], 0)
        x = jnp.concatenate([start(), prior.token_inputs(self.kind.halves(seen), 0)], axis=1)
        features, cache = prior.read(x, 0, state.cache)
        last = prior.config.prefix - 1 + place.local
        return prior.logits(jax.lax.dynamic_index_in_dim(features, last, axis=1, keepdims=False)), cache

    def _start(self, prior: Prior, labels: jax.Array, condition: jax.Array | None, place: Place) -> jax.Array:
        """Inputs before the window's first token."""
        return self.kind.prefix(prior, labels, self._condition(prior.config, condition, place))

    def _condition(self, config: PriorConfig, condition: jax.Array | None, place: Place) -> jax.Array | None:
        """The condition's tokens ``[B, Lc]`` under the window."""
        if condition is None:
            return None
        high, wide = (c // g for c, g in zip(config.condition_grid, config.grid, strict=True))
        whole = (self.grid[0] * high, self.grid[1] * wide)
        return _cut(condition, whole, place.top * high, place.left * wide, config.condition_grid)


def _branch(place: Place, before: Place, counts: list[int]) -> jax.Array:
    """0 where the window stays and its next token is drawn, else 1 + the place in ``counts`` of as many
    tokens as are needed."""
    stays = (place.top == before.top) & (place.left == before.left) & (place.local == before.local + 1)
    needed = 1 + jnp.sum(place.local > jnp.array(counts))
    return jnp.where(stays, 0, needed)


def _cut(
    tokens: jax.Array, grid: tuple[int, int], top: jax.Array, left: jax.Array, window: tuple[int, int]
) -> jax.Array:
    """A window of a grid, ``[B, H * W]`` to ``[B, h * w]``."""
    part = jax.lax.dynamic_slice(tokens.reshape(-1, *grid), (0, top, left), (len(tokens), *window))
    return part.reshape(len(tokens), -1)

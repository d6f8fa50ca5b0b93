"""Decoding of grids larger than the one that an autoregressive prior was trained on.

The sliding attention window of *Taming Transformers* (arXiv 2012.09841, section 3.2): each token is drawn
from a window of the trained size, placed so that the token is as near to its centre as the borders allow.

A token sees the earlier tokens inside its window only. Where the window stays, only the token before is read;
where it moves, all of its earlier tokens are: a token then costs a pass over much of the window. Since that
takes long, there is a call for each row of a batch where it can be, so that one is told how far it is.
"""

import dataclasses
import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.errors import UserError
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import sample_keys
from vqgan.prior.sampling.loops import RasterLoop, RasterNumbers
from vqgan.prior.sampling.request import SampleInputs
from vqgan.prior.text import Text
from vqgan.prior.transformer import PriorCache, PriorTransformer


class WindowPlace(NamedTuple):
    """Where a token is drawn: int32 scalars.

    Attributes:
      top: row of the large grid at which the window begins.
      left: column at which it begins.
      local: the token's place in the window, in raster order.
    """

    top: jax.Array
    left: jax.Array
    local: jax.Array


class WindowNumbers(NamedTuple):
    """Numbers of one call; others of them do not compile anew.

    Attributes:
      raster: those by which tokens are drawn one by one.
      start: int32 scalar, the first token that the call draws.
      stop: int32 scalar, the one after its last.
    """

    raster: RasterNumbers
    start: jax.Array
    stop: jax.Array


class WindowState(NamedTuple):
    """What the loop hands on.

    Attributes:
      tokens: the large grid's, int32 ``[B, H * W]``.
      place: of the token before.
      cache: of that token's window; it holds all positions before it.
    """

    tokens: jax.Array
    place: WindowPlace
    cache: PriorCache


def enlarge_grid(config: PriorConfig, grid: tuple[int, int]) -> PriorConfig:
    """Returns the configuration with another grid, and a condition grid that grows with it.

    Raises:
      UserError: a masked prior, a grid smaller than trained, or a condition grid that windows cannot cut.
    """
    if tuple(grid) == config.grid:
        return config
    if not config.is_causal:
        raise UserError(f"this prior is {config.kind}: it is sampled at its own grid only")
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
    return dataclasses.replace(config, grid=(grid[0], grid[1]), condition_grid=condition)


def place_window(k: jax.Array, grid: tuple[int, int], window: tuple[int, int]) -> WindowPlace:
    """Returns where token k of the large grid is drawn."""
    row, column = k // grid[1], k % grid[1]
    # The token is in the middle, but for the borders, at which the window stops.
    top = jnp.clip(row - window[0] // 2, 0, grid[0] - window[0])
    left = jnp.clip(column - window[1] // 2, 0, grid[1] - window[1])
    return WindowPlace(top, left, (row - top) * window[1] + column - left)


def window_moves(grid: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Returns which tokens of a large grid have another window than the token before, bool ``[H, W]``."""
    places = place_window(jnp.arange(grid[0] * grid[1]), grid, window)
    top, left = (np.diff(np.asarray(part), prepend=-1) for part in (places.top, places.left))
    return ((top != 0) | (left != 0)).reshape(grid)


def describe_windows(grid: tuple[int, int], window: tuple[int, int]) -> str:
    """Says in a line what a large grid takes, for people who wait for it."""
    moves = int(window_moves(grid, window).sum())
    return (
        f"{grid[0] * grid[1]} tokens an image, by a window of {window[0]}x{window[1]} that moves for {moves} "
        "of them; each of these costs a pass over much of the window, which takes long"
    )


@dataclasses.dataclass(frozen=True)
class SlidingWindowLoop(RasterLoop):
    """Token after token over a large grid.

    Attributes:
      grid: ``(H, W)``, the large one.
      window: ``(h, w)``, the trained one.
    """

    grid: tuple[int, int]
    window: tuple[int, int]

    def numbers(self, settings: SamplingConfig, known: np.ndarray) -> list[WindowNumbers]:
        """Returns the numbers of each call for a batch with known tokens ``[B, H * W]``.

        A call begins with a row, and only where the window moves: there the cache before is of no use, so
        that none is handed on, and every token is computed as it would be in a single call.
        """
        raster = self.raster_numbers(settings, known)
        rows = np.flatnonzero(window_moves(self.grid, self.window)[:, 0]) * self.grid[1]
        bounds = [self.given, *rows[rows > self.given], known.shape[1]]
        return [WindowNumbers(raster, *map(jnp.int32, pair)) for pair in itertools.pairwise(bounds)]

    def __call__(self, prior: PriorTransformer, inputs: SampleInputs, numbers: WindowNumbers) -> jax.Array:
        """Decodes a part of a batch, int32 ``[B, H * W]``, -1 from ``stop`` on."""
        window, length = self.window, prior.config.length
        seeds, labels, condition, known, text = jax.tree.map(jnp.asarray, inputs)
        text = self.variant.double_text(prior, text, len(known))
        keys = sample_keys(seeds)
        # Shapes are fixed when compiling, so a moved window is read up to one of two lengths. Most tokens are
        # on the window's middle row: what is above and beside them is enough. Near the bottom border the
        # window stops and tokens are lower in it: there, all but the last are read.
        counts = sorted({min((window[0] // 2 + 1) * window[1], length) - 1, length - 1})

        def step(k: jax.Array, state: WindowState) -> WindowState:
            place = place_window(k, self.grid, window)
            logits, cache = jax.lax.switch(
                _branch(place, state.place, counts),
                [partial(self._decode_step, prior, state, place, k, text)]
                + [partial(self._prefill, prior, state, place, labels, condition, text, n) for n in counts],
            )
            token = self.next_tokens(logits, keys, k, numbers.raster)
            return WindowState(state.tokens.at[:, k].set(token), place, cache)

        # No window stays where this one is, so that the first token's is read anew.
        nowhere = WindowPlace(jnp.int32(-1), jnp.int32(-1), jnp.int32(-1))
        first = WindowState(known, nowhere, prior.empty_cache(len(self.variant.double(known))))
        return jax.lax.fori_loop(numbers.start, numbers.stop, step, first).tokens

    def _decode_step(
        self,
        prior: PriorTransformer,
        state: WindowState,
        place: WindowPlace,
        k: jax.Array,
        text: Text | None,
    ) -> tuple[jax.Array, PriorCache]:
        """Returns logits ``[B or 2B, K]`` of token k, whose window is that of the token before.

        Only the token before is new: the cache holds the others.
        """
        previous = jax.lax.dynamic_slice_in_dim(state.tokens, k - 1, 1, axis=1)  # (B, 1)
        x = prior.token_inputs(self.variant.double(previous), place.local - 1)
        logits, cache = prior.decode_step(x, prior.config.prefix + place.local - 1, state.cache, text)
        return logits[:, 0], cache

    def _prefill(
        self,
        prior: PriorTransformer,
        state: WindowState,
        place: WindowPlace,
        labels: jax.Array,
        condition: jax.Array | None,
        text: Text | None,
        count: int,
    ) -> tuple[jax.Array, PriorCache]:
        """Returns logits ``[B or 2B, K]`` of a token whose window is new, of which ``count`` tokens are read.

        The old cache is of no use: in the new window every token has another position.
        """
        config = prior.config
        if condition is not None:
            condition = self._cut_condition(config, condition, place)  # (B, Lc)
        window = _cut_window(state.tokens, self.grid, place.top, place.left, config.grid)  # (B, h * w)
        # Those of them that are not drawn yet (-1) come after the token, so that nothing depends on them.
        seen = jnp.maximum(window[:, :count], 0)
        prefix = self.prefix_inputs(prior, labels, condition, text)  # (B or 2B, P, D)
        x = jnp.concatenate([prefix, prior.token_inputs(self.variant.double(seen), 0)], axis=1)
        features, cache = prior.prefill(x, state.cache, text)  # (B or 2B, P + count, D)
        last = config.prefix - 1 + place.local  # the position before the token
        return prior.logits(jax.lax.dynamic_index_in_dim(features, last, axis=1, keepdims=False)), cache

    def _cut_condition(self, config: PriorConfig, condition: jax.Array, place: WindowPlace) -> jax.Array:
        """Returns the condition's tokens ``[B, Lc]`` under the window."""
        high, wide = (c // g for c, g in zip(config.condition_grid, config.grid, strict=True))
        whole = (self.grid[0] * high, self.grid[1] * wide)
        return _cut_window(condition, whole, place.top * high, place.left * wide, config.condition_grid)


def _branch(place: WindowPlace, before: WindowPlace, counts: list[int]) -> jax.Array:
    """Chooses what to do next.

    Returns:
      0 where the window stays and its next token is drawn, else 1 + the place in ``counts`` of as many tokens
      as are needed.
    """
    # At the left and right borders the window stays while tokens move on in it, row by row.
    stays = (place.top == before.top) & (place.left == before.left) & (place.local == before.local + 1)
    needed = 1 + jnp.sum(place.local > jnp.array(counts))
    return jnp.where(stays, 0, needed)


def _cut_window(
    tokens: jax.Array, grid: tuple[int, int], top: jax.Array, left: jax.Array, window: tuple[int, int]
) -> jax.Array:
    """Cuts a window out of a grid, ``[B, H * W]`` to ``[B, h * w]``."""
    part = jax.lax.dynamic_slice(tokens.reshape(-1, *grid), (0, top, left), (len(tokens), *window))
    return part.reshape(len(tokens), -1)

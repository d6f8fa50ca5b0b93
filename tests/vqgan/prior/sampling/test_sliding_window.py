"""Sliding windows against a plain loop that searches for each token's window by trying all."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import (
    LogitsParams,
    SamplingVariant,
    filter_logits,
    guide_logits,
    sample_tokens,
)
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.sampling.sliding_window import SlidingWindowLoop, place_window, window_moves
from vqgan.prior.transformer import PriorTransformer

LLAMA = PriorConfig(
    codebook_size=9,
    grid=(3, 3),
    classes=3,
    condition_codebook_size=5,
    condition_grid=(3, 6),
    layers=1,
    heads=2,
    width=16,
    hidden=16,
)
GPT = dataclasses.replace(
    LLAMA, block="gpt", grid=(4, 2), classes=0, condition_codebook_size=0, condition_grid=(0, 0)
)
PLAIN = SamplingConfig()
ALL = SamplingConfig(temperature=1.2, top_k=6, guidance=2.0)


Params = Callable[[PriorConfig], dict[str, Any]]
Samplers = Callable[[PriorConfig], PriorSampler]
Forward = Callable[[PriorConfig], Callable[..., jax.Array]]


@pytest.fixture(scope="module")
def sampler(random_params: Params) -> Samplers:
    return functools.cache(lambda config: PriorSampler(config, random_params(config), batch_size=3))


@pytest.fixture(scope="module")
def forward(random_params: Params) -> Forward:
    @functools.cache
    def compiled(config: PriorConfig) -> Callable[..., jax.Array]:
        parts, params = take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0))), random_params(config)
        return jax.jit(lambda *inputs: parts.bind(params, {})(*inputs))

    return compiled


def first_row(at: int, size: int, window: int) -> int:
    """The first row (or column) of the window in which ``at`` is nearest to the middle, by trying all."""
    return min(range(size - window + 1), key=lambda top: abs(at - (top + window // 2)))


def large_request(config: PriorConfig, grid: tuple[int, int], count: int) -> Request:
    rng = np.random.default_rng(1)
    conditioned = config.condition_length > 0
    condition = rng.integers(0, 5, (count, grid[0] * grid[1] * 2)) if conditioned else None
    return Request(np.arange(count) + 5, rng.integers(-1, 3, count) if config.classes else None, condition)


def sample_plainly(
    forward: Forward,
    config: PriorConfig,
    grid: tuple[int, int],
    request: Request,
    settings: SamplingConfig,
) -> np.ndarray:
    """Token after token, each from a pass over the whole of its window."""
    (high, wide), count = config.grid, len(request.seeds)
    known = np.full((count, *grid), -1) if request.known is None else request.known.reshape(count, *grid)
    tokens = np.maximum(known, 0).astype(np.int32)
    none = np.full(count, config.classes)
    labels = none if request.labels is None else np.where(request.labels < 0, config.classes, request.labels)
    for k, (row, column) in enumerate(np.ndindex(grid)):
        if known[0, row, column] >= 0:
            continue
        top, left = first_row(row, grid[0], high), first_row(column, grid[1], wide)
        window = tokens[:, top : top + high, left : left + wide].reshape(count, -1)
        condition = None
        if request.condition is not None:  # twice as wide as the tokens' grid
            whole = request.condition.reshape(count, grid[0], 2 * grid[1])
            condition = whole[:, top : top + high, 2 * left : 2 * (left + wide)].reshape(count, -1)
        at = (row - top) * wide + column - left
        logits, without = (forward(config)(window, one, condition)[:, at] for one in (labels, none))
        params = LogitsParams.of(settings)
        logits = filter_logits(
            guide_logits(logits, without, jnp.float32(settings.guidance)),
            params,
            truncates=settings.truncates,
        )
        keys = jnp.stack([jax.random.fold_in(jax.random.key(int(seed)), k) for seed in request.seeds])
        tokens[:, row, column] = sample_tokens(logits, keys, params.temperature)
    return tokens


@pytest.mark.parametrize(
    ("config", "grid", "settings"),
    [(LLAMA, (5, 7), ALL), (GPT, (6, 5), PLAIN), (GPT, (4, 3), PLAIN), (GPT, (7, 2), PLAIN)],
    ids=["guided-5x7", "6x5", "wider", "higher"],
)
def test_large_grids(
    sampler: Samplers, forward: Forward, config: PriorConfig, grid: tuple[int, int], settings: SamplingConfig
) -> None:
    request = large_request(config, grid, 4)
    tokens = sampler(config).sample(request, settings, grid=grid)
    assert tokens.shape == (4, *grid)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, sample_plainly(forward, config, grid, request, settings))


def test_given_rows_are_completed(sampler: Samplers, forward: Forward) -> None:
    request = large_request(GPT, (6, 5), 2)
    known = np.full((2, 30), -1)
    known[:, :12] = np.random.default_rng(2).integers(0, 9, (2, 12))
    request = request._replace(known=known)
    tokens = sampler(GPT).sample(request, PLAIN, grid=(6, 5))
    np.testing.assert_array_equal(tokens.reshape(2, 30)[:, :12], known[:, :12])
    np.testing.assert_array_equal(tokens, sample_plainly(forward, GPT, (6, 5), request, PLAIN))


@pytest.mark.parametrize(("config", "settings"), [(LLAMA, ALL), (GPT, PLAIN)], ids=["guided", "plain"])
def test_the_trained_grid_gives_what_plain_sampling_gives(
    sampler: Samplers, config: PriorConfig, settings: SamplingConfig
) -> None:
    request = large_request(config, config.grid, 4)
    tokens = sampler(config).sample(request, settings)
    np.testing.assert_array_equal(sampler(config).sample(request, settings, grid=config.grid), tokens)
    variant = SamplingVariant(settings.is_guided, settings.truncates)
    loop = SlidingWindowLoop(variant, 0, config.grid, config.grid)  # the sliding loop itself, too
    np.testing.assert_array_equal(sampler(config).run(loop, config, request, settings), tokens)


def test_a_sample_is_its_seeds_and_numbers_compile_nothing_anew(random_params: Params) -> None:
    own = PriorSampler(GPT, random_params(GPT), batch_size=2)
    request = large_request(GPT, (6, 5), 5)
    whole = own.sample(request, PLAIN, grid=(6, 5))
    np.testing.assert_array_equal(
        own.sample(Request(request.seeds[[4, 1]]), PLAIN, grid=(6, 5)), whole[[4, 1]]
    )
    assert (own.sample(request, SamplingConfig(temperature=0.3), grid=(6, 5)) != whole).any()
    assert own.compilations == 1


@pytest.mark.parametrize(
    ("grid", "given", "told"),
    [
        ((6, 5), 0, [5, 10, 15, 20, 25, 30]),
        ((6, 5), 7, [10, 15, 20, 25, 30]),
        ((6, 5), 10, [15, 20, 25, 30]),
        ((7, 2), 0, [6, 8, 10, 14]),  # the window moves for the fourth, fifth and sixth row
        ((4, 2), 0, [8]),
    ],
)
def test_it_is_told_how_far_a_larger_grid_is(
    sampler: Samplers, grid: tuple[int, int], given: int, told: list[int]
) -> None:
    length, found = grid[0] * grid[1], list[tuple[int, int]]()
    known = np.full((2, length), -1)
    known[:, :given] = 3
    request = large_request(GPT, grid, 2)._replace(known=known)
    sampler(GPT).sample(request, PLAIN, grid=grid, progress=lambda *counts: found.append(counts))
    assert found == [(count, length) for count in told]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5), st.data())
def test_places(high: int, wide: int, more: int, wider: int, data: st.DataObject) -> None:
    grid = (high + more, wide + wider)
    row, column = (
        data.draw(st.integers(0, grid[0] - 1)),
        data.draw(st.integers(0, grid[1] - 1)),
    )
    place = place_window(jnp.int32(row * grid[1] + column), grid, (high, wide))
    top, left = int(place.top), int(place.left)
    assert 0 <= top <= row < top + high <= grid[0]
    assert 0 <= left <= column < left + wide <= grid[1]
    assert (top, left) == (first_row(row, grid[0], high), first_row(column, grid[1], wide))
    assert divmod(int(place.local), wide) == (row - top, column - left)
    before = divmod(row * grid[1] + column - 1, grid[1])
    stays = before[0] >= 0 and (
        (top, left) == (first_row(before[0], grid[0], high), first_row(before[1], grid[1], wide))
    )
    assert window_moves(grid, (high, wide))[row, column] == (not stays)


@pytest.mark.parametrize(
    ("config", "grid", "known", "message"),
    [
        (GPT, (3, 5), None, "a grid of 3x5 tokens is smaller than the 4x2"),
        (GPT, (4, 3), np.zeros((2, 8), int), "known tokens are int64 of shape .2, 8.: .* .2, 12."),
        (
            dataclasses.replace(LLAMA, condition_grid=(2, 3)),
            (4, 4),
            None,
            "cannot slide over a condition of 2x3",
        ),
        (LLAMA, (4, 4), None, "give 32 tokens of its 4x8 grid"),
    ],
)
def test_refusals(
    sampler: Samplers,
    config: PriorConfig,
    grid: tuple[int, int],
    known: np.ndarray | None,
    message: str,
    refused: Any,
) -> None:
    with refused(message):
        sampler(config).sample(Request(np.arange(2), known=known), PLAIN, grid=grid)

"""Temperature, truncation, guidance and draws against direct computations in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import (
    LogitsParams,
    filter_logits,
    guidance_scales,
    guide_logits,
    sample_keys,
    sample_tokens,
)

K = 6
filter_fast = jax.jit(filter_logits, static_argnames="truncates")
sample_fast = jax.jit(sample_tokens)

# Whole numbers over 8: ties are exact, and come up.
rows = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=K, max_size=K)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())


def admissible(logits: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """Tokens that may be drawn, by the definition; those as probable as the last one kept, too."""
    values = np.array(logits, np.float64)
    order = sorted(range(K), key=lambda token: -values[token])
    kept = order[: top_k or K]
    probabilities = softmax(values[kept] / (temperature or 1))
    number = next((n for n in range(1, len(kept) + 1) if probabilities[:n].sum() >= top_p), len(kept))
    return {token for token in range(K) if values[token] >= values[kept[number - 1]]}


def found(logits: list[float], settings: SamplingConfig) -> set[int]:
    out = filter_fast(
        jnp.asarray([logits], jnp.float32), LogitsParams.of(settings), truncates=settings.truncates
    )
    return set(np.flatnonzero(np.isfinite(np.asarray(out)[0])).tolist())


@settings(max_examples=100)
@given(
    rows, st.integers(0, K + 2), st.sampled_from([0.13, 0.37, 0.61, 0.93, 1.0]), st.sampled_from([0.5, 1, 2])
)
def test_tokens_that_may_be_drawn(logits: list[float], top_k: int, top_p: float, temperature: float) -> None:
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    if len(set(logits)) < K:
        # Ties across rounded sums of probabilities: all that is certain is that equals are treated alike.
        kept = found(logits, config)
        assert kept
        assert all((token in kept) == (logits[token] >= min(logits[n] for n in kept)) for token in range(K))
    else:
        assert found(logits, config) == admissible(logits, temperature, top_k, top_p)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SamplingConfig(), {0, 1, 2, 3, 4, 5}),
        (SamplingConfig(top_k=2), {0, 2}),
        (SamplingConfig(top_k=1), {2}),
        (SamplingConfig(top_k=3), {0, 2, 3, 4}),  # 3 and 4 are equally probable
        (SamplingConfig(top_p=0.4), {2}),
        (SamplingConfig(top_p=0.41), {0, 2}),
        (SamplingConfig(top_p=0.71), {0, 2, 3, 4}),
        (SamplingConfig(top_k=2, top_p=0.55), {2}),  # of the two, the first has 4 / 7
        (SamplingConfig(top_k=2, top_p=0.6), {0, 2}),
        (SamplingConfig(top_p=1e-9), {2}),
        (SamplingConfig(temperature=0, top_k=2), {0, 2}),
    ],
)
def test_truncation_by_hand(settings: SamplingConfig, expected: set[int]) -> None:
    logits = np.log([0.3, 0.05, 0.4001, 0.1, 0.1, 0.0499]).tolist()
    assert found(logits, settings) == expected


def test_temperature_divides() -> None:
    logits = jnp.array([[1.0, 3.0, 2.0]])
    out = np.asarray(
        filter_logits(logits, LogitsParams.of(SamplingConfig(temperature=0.25)), truncates=False)
    )
    np.testing.assert_allclose(out - out[:, :1], [[0, 8, 4]], rtol=1e-6)


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    config = SamplingConfig(temperature=1e-37, top_p=0.9)
    out = filter_logits(jnp.array([[10.0, 60.0, -20.0]]), LogitsParams.of(config), truncates=True)
    keys = sample_keys(jnp.arange(1, dtype=jnp.uint32))
    assert not np.isnan(out).any()
    assert sample_tokens(out, keys, jnp.float32(1e-37)).tolist() == [1]


@given(rows, rows, st.floats(0, 10, width=32))
def test_guidance(first: list[float], second: list[float], scale: float) -> None:
    a, b = (np.array(row, np.float64) for row in (first, second))
    out = guide_logits(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), jnp.float32(scale))
    np.testing.assert_allclose(out, b + scale * (a - b), atol=1e-4)
    np.testing.assert_array_equal(
        guide_logits(jnp.asarray(a), jnp.asarray(b), jnp.float32(1)), jnp.asarray(a)
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SamplingConfig(), [1, 1, 1, 1]),
        (SamplingConfig(guidance=3), [3, 3, 3, 3]),
        (SamplingConfig(guidance=3, guidance_schedule="linear"), [1.5, 2, 2.5, 3]),
        (
            SamplingConfig(guidance=3, guidance_schedule="cosine"),
            [1 + 1 - np.cos(np.pi / 4), 2, 1 + 1 + np.cos(np.pi / 4), 3],
        ),
        (SamplingConfig(guidance=3, guidance_from=0.25, guidance_until=0.75), [1, 3, 3, 1]),
        (SamplingConfig(guidance=0, guidance_until=0.5), [0, 0, 1, 1]),
    ],
)
def test_scales_of_guidance(settings: SamplingConfig, expected: list[float]) -> None:
    np.testing.assert_allclose(guidance_scales(settings, 4), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [SamplingConfig(), SamplingConfig(temperature=0.5), SamplingConfig(top_k=3), SamplingConfig(top_p=0.8)],
)
def test_frequencies(settings: SamplingConfig) -> None:
    """Draws of 20,000 seeds against the distribution that the definition gives."""
    count, logits = 20_000, np.log([0.3, 0.05, 0.4, 0.15, 0.08, 0.02])
    kept = admissible(logits.tolist(), settings.temperature, settings.top_k, settings.top_p)
    expected = softmax(np.where([n in kept for n in range(K)], logits / settings.temperature, -np.inf))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, K))
    rows = filter_fast(rows, LogitsParams.of(settings), truncates=settings.truncates)
    keys = sample_keys(jnp.arange(count, dtype=jnp.uint32))
    tokens = sample_fast(rows, keys, LogitsParams.of(settings).temperature)
    counts = np.bincount(np.asarray(tokens), minlength=K)
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    assert chisquare(counts[seen], count * expected[seen]).pvalue > 0.01


def test_greedy_draws_take_the_most_probable() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, K)), jnp.float32)
    keys = sample_keys(jnp.arange(5, dtype=jnp.uint32))
    np.testing.assert_array_equal(sample_tokens(logits, keys, jnp.float32(0)), np.argmax(logits, axis=-1))


def test_a_row_is_drawn_by_its_own_seed() -> None:
    logits = jnp.zeros((4, 1000))
    together = sample_tokens(logits, sample_keys(jnp.array([3, 1, 4, 3], jnp.uint32)), jnp.float32(1))
    alone = sample_tokens(logits[:1], sample_keys(jnp.array([4], jnp.uint32)), jnp.float32(1))
    assert together[0] == together[3] != together[1]
    assert together[2] == alone[0]


def test_jax_defaults_do_not_change_what_a_seed_gives() -> None:
    seeds, logits = jnp.arange(4, dtype=jnp.uint32), jnp.zeros((4, 1000))
    expected = sample_tokens(logits, sample_keys(seeds), jnp.float32(1))
    usual = jax.random.gumbel(jax.random.key(0), (4,))
    with jax.default_prng_impl("rbg"), jax.enable_x64(True):
        assert (jax.random.gumbel(jax.random.key(0), (4,)) != usual).all()
        np.testing.assert_array_equal(sample_tokens(logits, sample_keys(seeds), jnp.float32(1)), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "sampling.temperature is -1.0"),
        ({"temperature": float("nan")}, "sampling.temperature is nan"),
        ({"guidance": float("inf")}, "sampling.guidance is inf"),
        ({"top_k": -1}, "sampling.top_k is -1"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0"),
        ({"top_p": 1.5}, "sampling.top_p is 1.5"),
        ({"guidance_schedule": "sudden"}, "sampling.guidance_schedule is 'sudden'"),
        ({"guidance_from": 0.6, "guidance_until": 0.5}, "from before until"),
    ],
)
def test_refusals(wrong: dict[str, Any], message: str, refused: Any) -> None:
    with refused(message):
        SamplingConfig(**wrong)


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**40, 10**30])
def test_a_top_k_beyond_all_codes_is_all_codes(top_k: int) -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5)), jnp.float32)
    params = LogitsParams.of(SamplingConfig(top_k=top_k))
    np.testing.assert_array_equal(
        filter_logits(logits, params, truncates=True),
        filter_logits(logits, LogitsParams.of(SamplingConfig()), truncates=True),
    )

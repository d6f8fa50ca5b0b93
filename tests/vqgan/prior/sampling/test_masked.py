"""Parallel decoding: passes against a simulation in NumPy, and a whole sampler with given tokens anywhere."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vqgan.errors import UserError
from vqgan.functional import take_apart
from vqgan.prior.config import MASK_SCHEDULES, PriorConfig
from vqgan.prior.sampling.config import MaskedSamplingConfig, SamplingConfig
from vqgan.prior.sampling.logits import LogitsParams
from vqgan.prior.sampling.loops import fill_in, plan_passes
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer

CODES, LENGTH, CLASSES = 6, 12, 3
CONFIG = PriorConfig(
    kind="masked", codebook_size=CODES, grid=(3, 4), classes=CLASSES, layers=1, heads=2, width=16
)
TARGET = np.array([0, 5, 1, 4, 2, 3, 3, 2, 4, 1, 5, 0])
Params = Callable[[PriorConfig], dict[str, Any]]


def of_passes(steps: int, choice_temperature: float = 4.5, **changes: Any) -> SamplingConfig:
    schedule = changes.pop("schedule", "cosine")
    return SamplingConfig(**changes, masked=MaskedSamplingConfig(steps, schedule, choice_temperature))


@partial(jax.jit, static_argnames="truncates")
def filled(
    table: Any, influence: Any, tokens: Any, seeds: Any, passes: Any, params: Any, *, truncates: bool
) -> jax.Array:
    def predict(tokens: jax.Array, scale: jax.Array) -> jax.Array:
        """Logits of each place, to which every token that is there adds its own, as does each hidden one."""
        return table[None] + jnp.sum(influence[tokens], axis=1)

    return fill_in(predict, tokens, seeds, passes, params, truncates=truncates)


def run(model: tuple[Any, Any], tokens: np.ndarray, settings: SamplingConfig) -> np.ndarray:
    """All passes over tokens ``[B, L]`` in which ``CODES`` hides one, with seeds 0, 1, 2, …"""
    passes = plan_passes(settings, (tokens == CODES).sum(axis=1))
    seeds = np.arange(len(tokens), dtype=np.uint32)
    result = filled(*model, tokens, seeds, passes, LogitsParams.of(settings), truncates=settings.truncates)
    return np.asarray(result)


def hidden(batch: int) -> np.ndarray:
    return np.full((batch, LENGTH), CODES)


# Passes over stand-ins for the prior: a table of logits, and what tokens add to them

TABLE = np.random.default_rng(3).normal(size=(LENGTH, CODES)).astype(np.float32)
INFLUENCE = np.random.default_rng(4).normal(size=(CODES + 1, LENGTH, CODES)).astype(np.float32)
INFLUENCED = (TABLE, INFLUENCE)
TABLED = (TABLE, np.zeros_like(INFLUENCE))
ORACLE = (50 * np.eye(CODES, dtype=np.float32)[TARGET], np.zeros_like(INFLUENCE))


@pytest.mark.parametrize(("steps", "batch"), [(1, 2000), (4, 16), (20, 16)])
def test_grid_of_an_oracle_comes_out(steps: int, batch: int) -> None:
    result = run(ORACLE, hidden(batch), of_passes(steps))
    np.testing.assert_array_equal(result, np.tile(TARGET, (batch, 1)))


def simulated(tokens: np.ndarray, counts: list[int]) -> np.ndarray:
    """Greedy decoding of one sample without noise, in plain loops."""
    tokens = tokens.copy()
    for count in counts:
        logits = (TABLE + INFLUENCE[tokens].sum(axis=0)).astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        open_places = [place for place in range(LENGTH) if tokens[place] == CODES]
        open_places.sort(key=lambda place: log_probabilities[place].max(), reverse=True)
        for place in open_places[: len(open_places) - count]:
            tokens[place] = logits[place].argmax()
    return tokens


def test_greedy_passes_against_a_simulation() -> None:
    tokens = hidden(16)
    tokens[1, [0, 4, 5, 6]] = [1, 2, 3, 4]
    tokens[2, 1:] = 0
    result = run(INFLUENCED, tokens, of_passes(4, 0.0, schedule="linear", temperature=0.0))
    # Of 12, 8 and 1 unknown tokens three, two and one quarter are left, rounded down.
    plans = [[9, 6, 3, 0], [6, 4, 2, 0], [0, 0, 0, 0]]
    expected = [simulated(row, plan) for row, plan in zip(tokens, plans, strict=False)]
    np.testing.assert_array_equal(result[:3], expected)


def test_truncation_does_not_change_what_is_certain() -> None:
    # The most probable token alone may be drawn: without the prior's own probabilities, all would be certain.
    tokens = hidden(16)
    greedy = run(INFLUENCED, tokens, of_passes(4, 0.0, temperature=0.0))
    np.testing.assert_array_equal(run(INFLUENCED, tokens, of_passes(4, 0.0, top_k=1)), greedy)
    np.testing.assert_array_equal(run(INFLUENCED, tokens, of_passes(4, 0.0, top_p=1e-6)), greedy)


def test_greedy_tokens_do_not_depend_on_the_seed_without_noise() -> None:
    result = run(INFLUENCED, hidden(16), of_passes(4, 0.0, temperature=0.0))
    assert len({tuple(row) for row in result.tolist()}) == 1


def test_noise_of_the_confidence_changes_the_order() -> None:
    result = run(INFLUENCED, hidden(16), of_passes(4, 50.0, temperature=0.0))
    assert len({tuple(row) for row in result.tolist()}) > 1


def test_tokens_are_drawn_by_their_probabilities() -> None:
    draws = run(TABLED, hidden(2000), of_passes(1, temperature=1.5))
    expected = np.exp(TABLE / 1.5) / np.exp(TABLE / 1.5).sum(axis=1, keepdims=True) * 2000
    observed = np.stack([np.bincount(column, minlength=CODES) for column in draws.T])
    # 12 places with 5 degrees of freedom each: chi-square of 60 has mean 60 and exceeds 105 once in 4,000.
    assert ((observed - expected) ** 2 / expected).sum() < 105
    # Neighbouring places are drawn independently: a joint table of two has 25 degrees of freedom.
    joint = np.bincount(draws[:, 0] * CODES + draws[:, 1], minlength=CODES**2).reshape(CODES, CODES)
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / 2000
    assert ((joint - product) ** 2 / np.maximum(product, 1e-9)).sum() < 60


# A whole sampler


@pytest.fixture(scope="module")
def sampler(random_params: Params) -> PriorSampler:
    return PriorSampler(CONFIG, random_params(CONFIG), batch_size=4)


EIGHT = Request(np.arange(8) * 7, np.array([0, 1, 2, -1, 0, 1, 2, 0]))


def rows(request: Request, chosen: Any) -> Request:
    return Request(*(None if part is None else part[chosen] for part in request))


def test_a_sample_follows_from_its_seed_alone(sampler: PriorSampler, random_params: Params) -> None:
    settings = of_passes(3)
    together = sampler.sample(EIGHT, settings)
    assert together.shape == (8, 3, 4)
    assert together.dtype == np.int32
    assert together.min() >= 0
    assert together.max() < CODES
    assert len({row.tobytes() for row in together}) == 8
    for chosen in ([2], [0, 4, 6], [7, 6, 5, 4, 3, 2, 1, 0]):
        np.testing.assert_array_equal(sampler.sample(rows(EIGHT, chosen), settings), together[chosen])
    other = PriorSampler(CONFIG, random_params(CONFIG), batch_size=3)
    np.testing.assert_array_equal(other.sample(EIGHT, settings), together)


@hypothesis_settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(-1, CODES - 1), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=5)
)
def test_given_tokens_stay_wherever_they_are(sampler: PriorSampler, given: list[list[int]]) -> None:
    known = np.array(given)
    result = sampler.sample(Request(np.arange(len(known)), known=known), of_passes(3)).reshape(-1, LENGTH)
    np.testing.assert_array_equal(result[known >= 0], known[known >= 0])
    assert (result >= 0).all()
    assert (result < CODES).all()


def test_other_numbers_compile_nothing(sampler: PriorSampler) -> None:
    sampler.sample(EIGHT, of_passes(3))
    sampler.sample(EIGHT, of_passes(3, top_k=2, guidance=2.0))
    before = sampler.compilations
    for settings in (
        of_passes(3, 0.0, temperature=0.0),
        of_passes(3, schedule="square", temperature=0.5),
        of_passes(3, top_p=0.5, guidance=3.0, guidance_schedule="linear"),
        of_passes(3, top_k=4, guidance=0.5, guidance_until=0.5),
    ):
        sampler.sample(EIGHT, settings)
    known = np.full((3, LENGTH), -1)
    known[1, 3:] = 2
    sampler.sample(Request(np.arange(3), known=known), of_passes(3))
    assert sampler.compilations == before


def test_guided_samples_against_the_prior(sampler: PriorSampler, random_params: Params) -> None:
    prior = take_apart(lambda: PriorTransformer(CONFIG, rngs=nnx.Rngs(0))).bind(random_params(CONFIG), {})
    # One token of each sample is open: the first pass fills it in.
    known = np.tile(np.arange(LENGTH) % CODES, (LENGTH, 1))
    np.fill_diagonal(known, -1)
    labels = np.arange(LENGTH) % (CLASSES + 1)
    tokens, forward = np.where(known < 0, CODES, known), jax.jit(prior)
    both = forward(tokens, labels), forward(tokens, np.full(LENGTH, CLASSES))
    with_class, without = (np.asarray(logits)[range(LENGTH), range(LENGTH)] for logits in both)
    # All codes may be drawn; the settings only share a compiled function with other tests.
    settings = of_passes(3, guidance=4.0, temperature=0.0, top_k=CODES)
    request = Request(np.arange(LENGTH), np.where(labels == CLASSES, -1, labels), known=known)
    result = sampler.sample(request, settings).reshape(LENGTH, LENGTH).diagonal()
    expected = (without + 4 * (with_class - without)).argmax(axis=-1)
    np.testing.assert_array_equal(result, expected)
    assert (expected != with_class.argmax(axis=-1)).any()
    np.testing.assert_array_equal(expected[CLASSES], with_class[CLASSES].argmax())  # nothing to guide


def test_guidance_that_never_acts_changes_nothing(sampler: PriorSampler) -> None:
    # The passes start at shares 0, 1/3 and 2/3 of the way.
    late = of_passes(3, guidance=5.0, guidance_from=0.9, top_k=CODES)
    np.testing.assert_array_equal(sampler.sample(EIGHT, late), sampler.sample(EIGHT, of_passes(3)))


def test_complete_and_empty_requests(sampler: PriorSampler) -> None:
    complete = np.tile(TARGET, (2, 1))
    result = sampler.sample(Request(np.arange(2), known=complete), of_passes(3))
    np.testing.assert_array_equal(result.reshape(2, LENGTH), complete)
    # Beside a sample with an open token, a complete one goes through the passes too.
    beside = complete.copy()
    beside[1, 4] = -1
    result = sampler.sample(Request(np.arange(2), known=beside), of_passes(3)).reshape(2, LENGTH)
    np.testing.assert_array_equal(result[beside >= 0], complete[beside >= 0])
    assert sampler.sample(Request(np.arange(0)), of_passes(3)).shape == (0, 3, 4)


def test_other_weights_compile_nothing(random_params: Params) -> None:
    config = dataclasses.replace(CONFIG, block="gpt", classes=0, dropout=0.5)
    zeros = {name: np.zeros_like(value) for name, value in random_params(config).items()}
    sampler = PriorSampler(config, zeros, batch_size=2)
    settings = of_passes(2, 0.0, temperature=0.0)
    assert not sampler.sample(Request(np.arange(2)), settings).any()  # of equals the first
    # Blocks that add nothing, a position's own feature, and a head that turns it into the target's code.
    spelling = zeros | {
        "position_embedding": 9 * np.eye(1 + LENGTH, config.width, -1, dtype=np.float32),
        "norm.scale": np.ones(config.width, np.float32),
        "head.kernel": np.eye(config.width, LENGTH, dtype=np.float32)
        @ np.eye(CODES, dtype=np.float32)[TARGET],
    }
    sampler.replace_params(spelling)
    result = sampler.sample(Request(np.arange(2)), settings)
    np.testing.assert_array_equal(result.reshape(2, LENGTH), [TARGET, TARGET])
    assert sampler.compilations == 1


def test_condition_is_followed(random_params: Params) -> None:
    config = dataclasses.replace(
        CONFIG, classes=2, condition_codebook_size=4, condition_grid=(1, 2), layers=1
    )
    sampler = PriorSampler(config, random_params(config), batch_size=2)
    settings = of_passes(1, temperature=0.0, guidance=2.0)
    condition = np.array([[0, 1], [2, 3]])
    result = sampler.sample(Request(np.zeros(2, int), np.array([0, 0]), condition), settings)
    assert (result[0] != result[1]).any()
    turned = sampler.sample(Request(np.zeros(2, int), np.array([0, 0]), condition[::-1]), settings)
    np.testing.assert_array_equal(turned, result[::-1])


def test_what_cannot_be_sampled_is_refused(sampler: PriorSampler) -> None:
    anywhere = Request(np.arange(1), known=np.arange(LENGTH)[None] % 2 - 1)
    other = PriorSampler(dataclasses.replace(CONFIG, kind="autoregressive"), {})
    with pytest.raises(UserError, match="autoregressive"):
        other.sample(anywhere, of_passes(3))
    with pytest.raises(UserError, match="batch size 0"):
        PriorSampler(CONFIG, {}, batch_size=0)
    with pytest.raises(UserError, match="labels"):
        sampler.sample(Request(np.arange(1), np.array([CLASSES])), of_passes(3))
    unlabelled = PriorSampler(dataclasses.replace(CONFIG, classes=0), {})
    with pytest.raises(UserError, match="guidance"):
        unlabelled.sample(Request(np.arange(1)), of_passes(3, guidance=2.0))


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_plan_of_the_passes(schedule: str) -> None:
    passes = plan_passes(of_passes(4, 2.0, schedule=schedule), np.array([12, 5]))
    assert passes.number.tolist() == [0, 1, 2, 3]
    assert passes.scale.tolist() == [1, 1, 1, 1]
    assert passes.noise.tolist() == [1.5, 1, 0.5, 0]
    assert passes.hidden.shape == (4, 2)
    assert passes.hidden[-1].tolist() == [0, 0]

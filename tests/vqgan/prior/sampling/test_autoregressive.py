"""Sampling with the cache against a plain loop without it, seeds of their own, compilations, and refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import (
    LogitsParams,
    filter_logits,
    guidance_scales,
    guide_logits,
    sample_tokens,
)
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer

LLAMA = PriorConfig(
    codebook_size=9,
    grid=(3, 4),
    classes=3,
    condition_codebook_size=5,
    condition_grid=(1, 2),
    layers=2,
    heads=2,
    width=16,
    hidden=16,
    dropout=0.1,
)
GPT = dataclasses.replace(LLAMA, block="gpt", condition_codebook_size=0, condition_grid=(0, 0))
SETTINGS = {
    "plain": SamplingConfig(),
    "greedy": SamplingConfig(temperature=0),
    "truncated": SamplingConfig(temperature=0.8, top_k=4, top_p=0.9),
    "guided": SamplingConfig(guidance=2.5, guidance_schedule="linear", guidance_until=0.75),
    "all": SamplingConfig(temperature=1.3, top_k=5, top_p=0.95, guidance=1.7),
}
Params = Callable[[PriorConfig], dict[str, Any]]


class Model:
    """A prior with random weights: its sampler, and the plain way to do the same."""

    def __init__(self, config: PriorConfig, params: dict[str, Any]):
        parts = take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0)))

        def logits(*inputs: Any) -> jax.Array:
            prior = parts.bind(params, {})
            prior.eval()
            return prior(*inputs)

        self.config = config
        self.params = params
        self.logits = jax.jit(logits)
        self.sampler = PriorSampler(config, params, batch_size=3)

    def request(self, count: int) -> Request:
        """Some seeds, labels with and without a class, and conditions."""
        rng = np.random.default_rng(2)
        condition = rng.integers(0, 5, (count, 2)) if self.config.condition_length else None
        return Request(rng.integers(0, 2**32, count), rng.integers(-1, 3, count), condition)

    def sample_uncached(self, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Token after token, each from a pass over the whole sequence, without a batch's second half."""
        count, length, classes = len(request.seeds), self.config.length, self.config.classes
        known = np.full((count, length), -1) if request.known is None else request.known
        given, tokens = int((known[0] >= 0).sum()), np.maximum(known, 0).astype(np.int32)
        labels = np.where(request.labels < 0, classes, request.labels)
        scales = guidance_scales(settings, length)
        for k in range(given, length):
            logits = self.logits(tokens, labels, request.condition)[:, k]
            without = self.logits(tokens, np.full(count, classes), request.condition)[:, k]
            row = filter_logits(
                guide_logits(logits, without, scales[k]),
                LogitsParams.of(settings),
                truncates=settings.truncates,
            )
            keys = jnp.stack([jax.random.fold_in(jax.random.key(int(seed)), k) for seed in request.seeds])
            tokens[:, k] = sample_tokens(row, keys, LogitsParams.of(settings).temperature)
        return tokens.reshape(count, *self.config.grid)


@pytest.fixture(scope="module")
def llama(random_params: Params) -> Model:
    return Model(LLAMA, random_params(LLAMA))


@pytest.fixture(scope="module")
def gpt(random_params: Params) -> Model:
    return Model(GPT, random_params(GPT))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_cached_is_uncached(llama: Model, name: str) -> None:
    request = llama.request(5)
    tokens = llama.sampler.sample(request, SETTINGS[name])
    assert tokens.shape == (5, 3, 4)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, llama.sample_uncached(request, SETTINGS[name]))
    assert len(np.unique(tokens)) > 3


def test_cached_is_uncached_with_learned_positions(gpt: Model) -> None:
    request = gpt.request(3)
    np.testing.assert_array_equal(
        gpt.sampler.sample(request, SETTINGS["all"]), gpt.sample_uncached(request, SETTINGS["all"])
    )


@pytest.mark.parametrize("given", [1, 5, 11, 12])
def test_a_given_beginning_is_completed(gpt: Model, given: int) -> None:
    request = gpt.request(4)
    known = np.full((4, 12), -1)
    known[:, :given] = np.random.default_rng(3).integers(0, 9, (4, given))
    request = request._replace(known=known)
    tokens = gpt.sampler.sample(request, SETTINGS["plain"])
    np.testing.assert_array_equal(tokens.reshape(4, 12)[:, :given], known[:, :given])
    np.testing.assert_array_equal(tokens, gpt.sample_uncached(request, SETTINGS["plain"]))


def test_own_beginnings_are_completed_as_before(gpt: Model) -> None:
    request = gpt.request(3)
    whole = gpt.sampler.sample(request, SETTINGS["plain"])
    known = np.where(np.arange(12) < 5, whole.reshape(3, 12), -1)
    again = gpt.sampler.sample(request._replace(known=known), SETTINGS["plain"])
    np.testing.assert_array_equal(again, whole)


def test_a_sample_is_its_seeds_whatever_the_batch(llama: Model) -> None:
    request = llama.request(8)
    whole = llama.sampler.sample(request, SETTINGS["all"])
    order = np.random.default_rng(4).permutation(8)
    mixed = llama.sampler.sample(Request(*(x if x is None else x[order] for x in request)), SETTINGS["all"])
    np.testing.assert_array_equal(mixed, whole[order])
    for size in (1, 8):
        sampler = PriorSampler(LLAMA, llama.params, batch_size=size)
        np.testing.assert_array_equal(sampler.sample(request, SETTINGS["all"]), whole)


def test_seeds_classes_and_conditions_matter(llama: Model) -> None:
    request = Request(np.full(4, 7), np.array([0, 0, 1, -1]), np.array([[1, 2]] * 4))
    same, again, other, none = llama.sampler.sample(request, SETTINGS["plain"])
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()
    assert (same != none).any()
    for changed in (
        request._replace(seeds=np.full(4, 8)),
        request._replace(condition=np.array([[1, 3]] * 4)),
    ):
        assert (llama.sampler.sample(changed, SETTINGS["plain"])[0] != same).any()


def test_no_labels_are_no_class(gpt: Model) -> None:
    seeds = np.arange(3)
    np.testing.assert_array_equal(
        gpt.sampler.sample(Request(seeds), SETTINGS["plain"]),
        gpt.sampler.sample(Request(seeds, np.full(3, -1)), SETTINGS["plain"]),
    )


def test_numbers_compile_nothing_anew(llama: Model) -> None:
    sampler = PriorSampler(LLAMA, llama.params, batch_size=4)
    request = llama.request(6)
    first = sampler.sample(request, SamplingConfig(top_k=3, guidance=2))
    for settings in (
        SamplingConfig(top_p=0.5, guidance=4, guidance_schedule="cosine"),
        SamplingConfig(temperature=0, top_k=2, guidance=0.5, guidance_from=0.5),
    ):
        assert (sampler.sample(request, settings) != first).any()
    assert sampler.sample(llama.request(9), SamplingConfig(top_k=3, guidance=2)).shape == (9, 3, 4)
    sampler.replace_params({name: x * 0.9 for name, x in llama.params.items()})
    assert (sampler.sample(request, SamplingConfig(top_k=3, guidance=2)) != first).any()
    assert sampler.compilations == 1


def test_the_last_tokens_frequencies_are_the_models(gpt: Model) -> None:
    """All but one token are given: 3,000 seeds against the softmax of the model's logits."""
    known = np.tile(np.append(np.arange(11) % 9, -1), (3000, 1))
    sampler = PriorSampler(GPT, gpt.params, batch_size=3000)
    tokens = sampler.sample(Request(np.arange(3000), known=known), SETTINGS["plain"])[:, -1, -1]
    logits = np.asarray(gpt.logits(np.maximum(known[:1], 0), np.array([3]), None))[0, -1]
    expected = 3000 * np.exp(logits) / np.exp(logits).sum()
    counts, often = np.bincount(tokens, minlength=9), expected >= 5
    assert often.sum() >= 3
    statistic = ((counts - expected) ** 2 / expected)[often].sum()
    assert statistic < 20.1  # the 99th percentile of chi-square with 8 degrees of freedom


def test_bfloat16_samples(gpt: Model) -> None:
    sampler = PriorSampler(GPT, gpt.params, batch_size=3, dtype=jnp.bfloat16)
    tokens, exact = (s.sample(gpt.request(3), SETTINGS["greedy"]) for s in (sampler, gpt.sampler))
    assert tokens.min() >= 0
    assert tokens.max() < 9
    np.testing.assert_array_equal(tokens[:, 0, 0], exact[:, 0, 0])


def test_nothing_is_sampled_of_an_empty_request(gpt: Model) -> None:
    assert gpt.sampler.sample(Request(np.zeros(0, int)), SETTINGS["plain"]).shape == (0, 3, 4)


SEEDS = np.arange(2)
CONDITION = np.zeros((2, 2), int)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(np.array([0.5, 1]), None, CONDITION), "seeds are float64 of shape .2.: give integers"),
        (Request(np.int64(3), None, CONDITION), "seeds are int64 of shape"),
        (Request(np.array([-1, 0]), None, CONDITION), "seeds reach from -1 to 0"),
        (Request(np.array([0, 2**32]), None, CONDITION), "seeds reach from 0 to 4294967296"),
        (Request(SEEDS, np.array([0, 3]), CONDITION), "labels reach from 0 to 3: they must lie in .-1, 2."),
        (
            Request(SEEDS, np.array([0]), CONDITION),
            "labels are int64 of shape .1.: give integers of shape .2.",
        ),
        (Request(SEEDS), "this prior needs a condition: give 2 tokens of its 1x2 grid"),
        (Request(SEEDS, None, CONDITION + 5), "condition tokens reach from 5 to 5"),
        (Request(SEEDS, None, CONDITION[:, :1]), "condition tokens are int64 of shape .2, 1."),
        (Request(SEEDS, None, CONDITION, np.full((2, 12), 9)), "known tokens reach from 9 to 9"),
        (Request(SEEDS, None, CONDITION, np.full((2, 3, 4), 1)), "known tokens are int64 of shape .2, 3, 4."),
        (Request(SEEDS, None, CONDITION, np.arange(24).reshape(2, 12) % 2 - 1), "take a masked prior"),
        (Request(SEEDS, None, CONDITION, np.tri(2, 12, dtype=int) - 1), "one n for all samples"),
    ],
)
def test_requests_that_are_refused(llama: Model, request_: Request, message: str, refused: Any) -> None:
    with refused(message):
        llama.sampler.sample(request_, SETTINGS["plain"])


def test_what_a_prior_without_classes_refuses(random_params: Params, refused: Any) -> None:
    config = dataclasses.replace(GPT, classes=0)
    sampler = PriorSampler(config, random_params(config))
    with refused("class 1 was asked of a prior that has no classes"):
        sampler.sample(Request(SEEDS, np.array([-1, 1])), SETTINGS["plain"])
    with refused("guidance is 2.5, but this prior was trained without classes"):
        sampler.sample(Request(SEEDS), SETTINGS["guided"])
    with refused("a condition was given to a prior that was trained without one"):
        sampler.sample(Request(SEEDS, None, CONDITION), SETTINGS["plain"])


def test_samplers_that_are_refused(refused: Any) -> None:
    masked = PriorSampler(dataclasses.replace(GPT, kind="masked"), {})
    with refused("this prior is masked"):
        masked.sample(Request(SEEDS), SETTINGS["plain"], grid=(4, 4))
    with refused("batch size 0: it must be at least 1"):
        PriorSampler(GPT, {}, batch_size=0)

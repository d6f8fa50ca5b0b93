"""Losses of priors against NumPy, with a stand-in that gives fixed logits and keeps its inputs."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.errors import UserError
from vqgan.functional import Arrays, Functional, take_apart
from vqgan.prior import losses
from vqgan.prior.config import ObjectiveConfig, PriorConfig
from vqgan.prior.losses import (
    Objective,
    training_loss,
    unigram_entropy,
    validation_loss,
)
from vqgan.prior.transformer import PriorTransformer

CODES, LENGTH, CLASSES = 5, 16, 3
CONFIG = PriorConfig(codebook_size=CODES, grid=(4, 4), classes=CLASSES, layers=1, heads=1, width=8)
MASKED = dataclasses.replace(CONFIG, kind="masked")
PLAIN = ObjectiveConfig(class_dropout=0)
CORRUPTED = ObjectiveConfig(class_dropout=0.3, keep=0.7)
KEY = jax.random.key(5)


class Spelling:
    """In place of a prior: gives the logits that it was made with, and keeps what it was called with."""

    def __init__(self, config: PriorConfig, logits: jax.Array):
        self.config = config
        self.logits = logits

    def __call__(
        self, tokens: jax.Array, labels: jax.Array, condition: jax.Array | None, text: Any
    ) -> jax.Array:
        assert text is None
        self.seen = Seen(tokens, labels, condition)
        return self.logits


class Seen(NamedTuple):
    tokens: Any
    labels: Any
    condition: Any


class Case(NamedTuple):
    """A batch as the loss takes it."""

    logits: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    condition: np.ndarray | None = None
    key: jax.Array = KEY


def case(batch: int) -> Case:
    return Case(random_logits(batch), random_tokens(batch), np.zeros(batch, np.int32))


def labelled(batch: int) -> Case:
    return case(batch)._replace(labels=np.arange(batch, dtype=np.int32) % CLASSES)


@partial(jax.jit, static_argnums=(0, 1))
def run(config: PriorConfig, objective: ObjectiveConfig, case: Case) -> tuple[Objective, Seen]:
    """The loss, and what a prior is given for it."""
    prior = Spelling(config, case.logits)
    result = training_loss(prior, case.tokens, case.labels, case.condition, case.key, objective)
    return result, prior.seen


def random_logits(batch: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, LENGTH, CODES)).astype(np.float32)


def random_tokens(batch: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, CODES, (batch, LENGTH)).astype(np.int32)


def numpy_nats(logits: Any, tokens: Any, smoothing: float = 0.0) -> np.ndarray:
    logits, tokens = np.asarray(logits, np.float64), np.asarray(tokens)
    log_probabilities = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
    targets = np.eye(CODES)[tokens] * (1 - smoothing) + smoothing / CODES
    return -(targets * log_probabilities).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_autoregressive_loss_is_the_mean_over_all_tokens(smoothing: float) -> None:
    given = case(6)
    result, seen = run(CONFIG, dataclasses.replace(PLAIN, label_smoothing=smoothing), given)
    np.testing.assert_array_equal(seen.tokens, given.tokens)  # all inputs are kept by default
    expected = numpy_nats(given.logits, given.tokens, smoothing).mean()
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    assert result.weight == 6 * LENGTH
    nats = numpy_nats(given.logits, given.tokens).mean()
    assert float(result.scalars["nats"]) == pytest.approx(nats, rel=1e-5)
    right = np.asarray(given.logits).argmax(axis=-1) == np.asarray(given.tokens)
    assert float(result.scalars["accuracy"]) == pytest.approx(right.mean(), rel=1e-5)
    assert result.loss.dtype == result.weight.dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_loss_is_the_mean_over_hidden_tokens(smoothing: float) -> None:
    given = case(6)
    result, seen = run(MASKED, dataclasses.replace(PLAIN, label_smoothing=smoothing), given)
    hidden = np.asarray(seen.tokens) == CODES
    np.testing.assert_array_equal(seen.tokens, np.where(hidden, CODES, given.tokens))
    assert 6 <= hidden.sum() < given.tokens.size
    assert result.weight == hidden.sum()
    expected = numpy_nats(given.logits, given.tokens, smoothing)[hidden].mean()
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    nats = numpy_nats(given.logits, given.tokens)[hidden].mean()
    assert float(result.scalars["nats"]) == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize(("schedule", "mean"), [("cosine", 2 / math.pi), ("cubic", 3 / 4)])
def test_share_of_hidden_tokens_follows_the_schedule(schedule: str, mean: float) -> None:
    _, seen = run(MASKED, ObjectiveConfig(class_dropout=0.3, mask_schedule=schedule), labelled(4000))
    hidden = np.asarray(seen.tokens) == CODES
    counts = hidden.sum(axis=1)
    assert counts.min() >= 1
    assert counts.max() == LENGTH
    # Rounding up adds half a token; the standard error is below 0.005.
    assert counts.mean() / LENGTH == pytest.approx(mean + 0.5 / LENGTH, abs=0.02)
    np.testing.assert_allclose(hidden.mean(axis=0), hidden.mean(), atol=0.04)  # places are even


@pytest.mark.parametrize("config", [CONFIG, MASKED])
def test_gradient_passes_through_predicted_tokens_only(config: PriorConfig) -> None:
    given = case(6)
    gradient = jax.jit(jax.grad(lambda x: run(config, PLAIN, given._replace(logits=x))[0].loss))(given.logits)
    _, seen = run(config, PLAIN, given)
    predicted = seen.tokens == CODES if config.kind == "masked" else np.ones((6, LENGTH), bool)
    np.testing.assert_array_equal(np.abs(gradient).sum(axis=-1) > 0, predicted)


def test_replaced_inputs_are_random_codes() -> None:
    given = labelled(4000)
    _, seen = run(CONFIG, CORRUPTED, given)
    tokens = np.asarray(seen.tokens)
    shares = np.bincount(((tokens - given.tokens) % CODES).ravel(), minlength=CODES) / tokens.size
    # A fifth of the 30 % keeps its code by chance. The standard error is below 0.002.
    np.testing.assert_allclose(shares, [0.76, 0.06, 0.06, 0.06, 0.06], atol=0.008)
    assert tokens.min() == 0
    assert tokens.max() == CODES - 1


def test_replaced_inputs_leave_targets_and_prefix() -> None:
    labels, condition = np.array([0, 1, 2, -1]), np.arange(8).reshape(4, 2)
    given = case(4)._replace(labels=labels, condition=condition)
    result, seen = run(CONFIG, ObjectiveConfig(class_dropout=0, keep=0.0), given)
    assert (seen.tokens != given.tokens).mean() > 0.5
    expected = numpy_nats(given.logits, given.tokens).mean()
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    assert seen.labels.tolist() == [0, 1, 2, CLASSES]
    np.testing.assert_array_equal(seen.condition, condition)


@pytest.mark.parametrize(
    ("config", "objective"), [(CONFIG, CORRUPTED), (MASKED, ObjectiveConfig(class_dropout=0.3))]
)
def test_classes_are_left_out_as_often_as_asked(config: PriorConfig, objective: ObjectiveConfig) -> None:
    given = labelled(4000)
    _, seen = run(config, objective, given)
    dropped = np.asarray(seen.labels) == CLASSES
    np.testing.assert_array_equal(seen.labels, np.where(dropped, CLASSES, given.labels))
    assert dropped.mean() == pytest.approx(0.3, abs=0.03)
    for label in range(CLASSES):
        assert dropped[given.labels == label].mean() == pytest.approx(0.3, abs=0.06)


def test_prior_without_classes_looks_at_no_label() -> None:
    config = dataclasses.replace(CONFIG, classes=0)
    _, seen = run(config, PLAIN, case(6)._replace(labels=np.array([-1, 0, 7, 1, 2, 3])))
    assert seen.labels.tolist() == [0] * 6


def test_other_keys_hide_other_tokens() -> None:
    seen = [run(MASKED, PLAIN, case(6)._replace(key=jax.random.key(n)))[1].tokens.tolist() for n in (5, 5, 6)]
    assert seen[0] == seen[1] != seen[2]


# Validation, with a real prior


def structure(config: PriorConfig) -> tuple[Functional[PriorTransformer], Arrays]:
    functional = take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    params = {
        ".".join(map(str, path)): generator.normal(0, 0.4, variable.shape).astype(np.float32)
        for path, variable in nnx.to_flat_state(functional.params)
    }
    return functional, params


def forward(config: PriorConfig) -> Callable[[Any], jax.Array]:
    functional, params = structure(config)
    return jax.jit(lambda tokens: functional.bind(params, {})(tokens, jnp.array([0, 1, 2, CLASSES])))


def compiled(config: PriorConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    functional, params = structure(config)

    @jax.jit
    def measure(tokens: Any, labels: Any, valid: Any) -> tuple[jax.Array, jax.Array]:
        prior = functional.bind(params, {}, KEY)
        result = validation_loss(prior, tokens, labels, None, valid)
        assert not prior.dropout.deterministic  # the caller's prior stays as it was
        return result

    return measure


@pytest.fixture(scope="module")
def masked_validation() -> Callable[..., tuple[jax.Array, jax.Array]]:
    return compiled(dataclasses.replace(MASKED, dropout=0.5))


LABELS = np.array([0, 1, 2, -1])


def test_autoregressive_validation_is_the_exact_likelihood_without_dropout() -> None:
    tokens = random_tokens(4)
    expected = numpy_nats(forward(CONFIG)(tokens), tokens)
    measure = compiled(dataclasses.replace(CONFIG, dropout=0.5))
    nats, count = measure(tokens, LABELS, np.ones(4))
    assert float(nats) == pytest.approx(expected.sum(), rel=1e-5)
    assert count == 4 * LENGTH
    # A row that only fills up may hold anything.
    tokens[2] = 10**6
    nats, count = measure(tokens, LABELS, np.array([1.0, 1, 0, 1]))
    assert float(nats) == pytest.approx(expected[[0, 1, 3]].sum(), rel=1e-5)
    assert count == 3 * LENGTH


def test_masked_validation_hides_four_shares(masked_validation: Any) -> None:
    # 16 times the cosine of pi/2 times 1/8, 3/8, 5/8, 7/8 is 15.7, 13.3, 8.9, 3.1; rounded up:
    _, count = masked_validation(random_tokens(4), LABELS, np.ones(4, bool))
    assert count == 4 * (16 + 14 + 9 + 4)


def test_masked_validation_does_not_depend_on_order_batch_or_dropout(masked_validation: Any) -> None:
    tokens = random_tokens(4)
    nats, count = masked_validation(tokens, LABELS, np.ones(4, bool))
    turned, _ = masked_validation(tokens[::-1], LABELS[::-1], np.ones(4, bool))
    assert float(turned) == pytest.approx(float(nats), rel=1e-5)
    parts = [masked_validation(tokens, LABELS, np.arange(4) == row) for row in range(4)]
    assert sum(float(part) for part, _ in parts) == pytest.approx(float(nats), rel=1e-5)
    assert sum(float(number) for _, number in parts) == count


def test_masked_validation_against_numpy(masked_validation: Any) -> None:
    logits_of = forward(MASKED)
    hide = jax.jit(losses._hide_for_validation, static_argnums=1)
    tokens, expected, counts = random_tokens(4), 0.0, []
    for part in range(4):
        inputs, hidden = map(np.asarray, hide(tokens, CODES, part))
        np.testing.assert_array_equal(inputs, np.where(hidden, CODES, tokens))
        assert len({tuple(row) for row in hidden.tolist()}) == (1 if part == 0 else 4)
        expected += numpy_nats(logits_of(inputs), tokens)[hidden].sum()
        counts.append(hidden.sum(axis=1).tolist())
    assert counts == [[16] * 4, [14] * 4, [9] * 4, [4] * 4]
    nats, _ = masked_validation(tokens, LABELS, np.ones(4, bool))
    assert float(nats) == pytest.approx(expected, rel=1e-5)


# Reference figures and configuration


def test_unigram_entropy_by_hand() -> None:
    assert unigram_entropy(np.array([1, 0, 1, 2])) == pytest.approx(1.5 * math.log(2))
    assert unigram_entropy(np.full(1024, 3)) == pytest.approx(math.log(1024))
    assert math.copysign(1, unigram_entropy(np.array([0, 9]))) == 1
    assert unigram_entropy(np.array([0, 9])) == 0


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        unigram_entropy(np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_dropout", 1.1),
        ("keep", -0.1),
        ("keep", math.nan),
        ("label_smoothing", 1.0),
        ("mask_schedule", "sine"),
    ],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^objective\.{field} is "):
        ObjectiveConfig(**{field: value})  # type: ignore[arg-type]


def test_replacing_tokens_of_a_masked_prior_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective\.keep is 0\.9"):
        run(MASKED, ObjectiveConfig(keep=0.9), case(2))

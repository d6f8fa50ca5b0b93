"""An update of a prior: what it does to the state, what it depends on, and stopping and going on."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.prior.config import ObjectiveConfig, PriorConfig
from vqgan.training import sharding
from vqgan.training.logs import ProgressLine
from vqgan.training.loop import Evaluation, Outcome, TrainingLoop
from vqgan.training.loop_config import OptimizerConfig
from vqgan.training.prior.config import PriorLoopConfig, PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner, PriorTrainState
from vqgan.training.prior.prior_rows import PriorRows

CODES, LENGTH = 16, 6
TOY = PriorTrainConfig(
    model=PriorConfig(
        codebook_size=CODES, grid=(2, 3), classes=2, layers=1, heads=2, width=16, hidden=32, dropout=0.1
    ),
    train=PriorLoopConfig(
        steps=8, batch_size=8, ema_decay=0.9, seed=3, log_every=1, evaluate_every=4, save_every=3
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-2, warmup_steps=0, schedule="constant", b1=0.9, b2=0.95, weight_decay=0.05
    ),
)
PLAIN = dataclasses.replace(
    TOY,
    model=dataclasses.replace(TOY.model, dropout=0.0),
    objective=ObjectiveConfig(class_dropout=0.0),
)


class Numbered:
    """Endless batches, each a function of its number."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> "Numbered":
        return self

    def __next__(self) -> PriorRows:
        self.position += 1
        return rows(self.position - 1)

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def rows(number: int, count: int = 8) -> PriorRows:
    """Tokens of which the first tells the class, and the later ones rise by one."""
    rng = np.random.default_rng(number)
    first = rng.integers(0, CODES, (count, 1))
    tokens = (first + np.arange(LENGTH)) % CODES
    return PriorRows(tokens.astype(np.int32), (first[:, 0] // 8).astype(np.int32))


def make(config: PriorTrainConfig) -> PriorLearner:
    return PriorLearner(config)


@pytest.fixture(scope="module")
def learner() -> PriorLearner:
    return make(TOY)


@pytest.fixture(scope="module")
def plain() -> PriorLearner:
    """Without anything random."""
    return make(PLAIN)


@pytest.fixture(scope="module")
def start(learner: PriorLearner) -> PriorTrainState:
    """The state before the first step, in host memory; all learners here have the same one."""
    state: PriorTrainState = jax.tree.map(np.array, learner.initial())
    return state


def steps(
    learner: PriorLearner, start: PriorTrainState, count: int, first: int = 0
) -> tuple[PriorTrainState, Any]:
    """Some steps from a state in host memory."""
    state, scalars = sharding.replicate(start, learner.mesh), None
    for step in range(first, first + count):
        state, scalars = learner.step(step, state, rows(step))
    return jax.tree.map(np.array, state), scalars


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_close(one: Any, other: Any, rtol: float) -> None:
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=2e-5)


def test_first_loss_is_that_of_even_chances(learner: PriorLearner, start: PriorTrainState) -> None:
    _, scalars = steps(learner, start, 1)
    assert float(scalars["loss"]) == pytest.approx(math.log(CODES), rel=1e-5)
    assert {"nats", "accuracy", "gradient_norm", "learning_rate", "skipped_in_row"} < set(scalars)


def test_steps_repeat_to_the_bit_in_one_compilation(learner: PriorLearner, start: PriorTrainState) -> None:
    assert_same(steps(learner, start, 4)[0], steps(learner, start, 4)[0])
    assert learner.compilations == 1


def test_randomness_follows_from_the_number_of_the_step(
    learner: PriorLearner, start: PriorTrainState
) -> None:
    state = steps(learner, start, 2)[0]  # at first the head is 0 and nothing shows
    losses = [
        float(learner.step(step, sharding.replicate(state, learner.mesh), rows(0))[1]["loss"])
        for step in (5, 6, 5)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_average_by_hand(plain: PriorLearner, start: PriorTrainState) -> None:
    """Decay is (1 + n) / (10 + n) at first: 0.1 after the first update, 2/11 after the second."""
    name = "head.kernel"
    one = steps(plain, start, 1)[0]
    expected = 0.1 * start.params[name] + 0.9 * one.params[name]
    np.testing.assert_allclose(one.average[name], expected, rtol=1e-5, atol=1e-7)
    two = steps(plain, one, 1, 1)[0]
    expected = 2 / 11 * expected + 9 / 11 * two.params[name]
    np.testing.assert_allclose(two.average[name], expected, rtol=1e-5, atol=1e-7)


def test_first_update_by_hand(plain: PriorLearner, start: PriorTrainState) -> None:
    """Adam's first step is the rate times the gradient's sign; matrices decay (arXiv 1711.05101)."""
    state = steps(plain, start, 1)[0]
    moved = np.abs(state.params["head.kernel"])  # which is 0 at first
    large = moved > 5e-3  # where the gradient is not of the size of Adam's epsilon
    assert large.mean() > 0.9
    np.testing.assert_allclose(moved[large], 1e-2, rtol=1e-2)
    # With a head of 0 no gradient reaches the other weights: matrices shrink by rate times decay.
    name = "blocks.0.attention.query.kernel"
    np.testing.assert_allclose(state.params[name], start.params[name] * (1 - 1e-2 * 0.05), rtol=1e-5)
    np.testing.assert_array_equal(state.params["norm.scale"], start.params["norm.scale"])


def test_loss_that_is_not_finite_changes_nothing(learner: PriorLearner, start: PriorTrainState) -> None:
    good = steps(learner, start, 2)[0]
    broken = {**good.params, "head.kernel": np.full_like(good.params["head.kernel"], np.nan)}
    state = good._replace(params=broken)
    for count in (1, 2):
        after, scalars = steps(learner, state, 1)
        assert (int(scalars["skipped"]), int(scalars["skipped_in_row"])) == (count, count)
        assert_same(after[:4], state[:4])
        state = after
    healthy, _ = steps(learner, state._replace(params=good.params), 1)
    assert (int(healthy.skipped), int(healthy.skipped_in_row), int(healthy.updates)) == (2, 0, 3)


def test_parts_of_a_batch_give_the_update_of_the_whole(plain: PriorLearner, start: PriorTrainState) -> None:
    """Whatever is kept for the backward pass or computed again."""
    train = dataclasses.replace(PLAIN.train, accumulate=2, remat=True)
    parted, scalars = steps(make(dataclasses.replace(PLAIN, train=train)), start, 3)
    whole, expected = steps(plain, start, 3)
    assert_close(parted.params, whole.params, 2e-4)
    for name in ("loss", "nats", "accuracy"):
        assert float(scalars[name]) == pytest.approx(float(expected[name]), rel=1e-4)


def test_masked_prior_in_bfloat16_without_an_average() -> None:
    model = dataclasses.replace(TOY.model, kind="masked")
    train = dataclasses.replace(TOY.train, ema_decay=0.0, dtype="bfloat16", remat=True)
    learner = make(dataclasses.replace(TOY, model=model, train=train))
    state, scalars = learner.step(0, learner.initial(), rows(0))
    assert float(scalars["loss"]) == pytest.approx(math.log(CODES), rel=1e-3)
    assert 0 <= float(scalars["accuracy"]) <= 1
    assert {leaf.dtype for leaf in state.params.values()} == {jnp.dtype("float32")}
    assert state.average == {}
    assert learner.exported(state) is state.params


class Stop:
    """Asks to stop at a step."""

    def __init__(self, batches: Numbered, step: int):
        self._batches, self._step = batches, step

    @property
    def asked(self) -> bool:
        return self._batches.position >= self._step


def run(folder: Path, learner: PriorLearner, stop: int) -> Outcome[PriorTrainState]:
    batches = Numbered()
    logs = {"quiet": True, "tensorboard": False}
    loop = TrainingLoop(
        learner,
        lambda params: Evaluation({"loss": 1.0}, None),
        lambda *_: None,
        batches,
        TOY.train,
        folder,
        ProgressLine(quiet=True),
        logs,
    )
    return loop.run(Stop(batches, stop))


def test_stopped_and_resumed_to_the_bit(learner: PriorLearner, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", learner, 100)
    assert (whole.step, whole.finished, whole.metrics) == (8, True, {"loss": 1.0})
    assert not run(tmp_path / "parts", learner, 5).finished
    resumed = run(tmp_path / "parts", learner, 100)
    assert resumed.finished
    assert_same(resumed.state, whole.state)
    assert learner.compilations == 1


def test_devices_that_cannot_share_the_state(refused: Callable[[str], Any]) -> None:
    fsdp = dataclasses.replace(TOY.train, fsdp=3)
    with refused("train.fsdp is 3: it must divide the number of devices"):
        make(dataclasses.replace(TOY, train=fsdp))


def test_where_arrays_are_cut() -> None:
    cut = sharding._cut
    assert cut((16, 64), 4) == jax.P(None, "fsdp")
    assert cut((64, 64), 4) == jax.P("fsdp", None)  # the first of equals
    assert cut((66, 8), 4) == jax.P(None, "fsdp")  # the largest that can be cut
    assert cut((3, 5), 4) == jax.P()
    assert cut((), 4) == jax.P()
    assert cut((16, 64), 1) == jax.P()

"""Learning is real: on Markov chains, whose entropy is known exactly, a prior gets to that entropy."""

import dataclasses
import math

import numpy as np
import pytest

from vqgan.prior.config import ObjectiveConfig, PriorConfig
from vqgan.prior.losses import unigram_entropy
from vqgan.training.loop import Evaluation
from vqgan.training.loop_config import OptimizerConfig
from vqgan.training.prior.config import PriorLoopConfig, PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner
from vqgan.training.prior.prior_rows import PriorRows
from vqgan.training.prior.run import make_prior_evaluation

CODES, LENGTH, STEPS = 8, 16, 240
CONFIG = PriorTrainConfig(
    model=PriorConfig(codebook_size=CODES, grid=(4, 4), layers=1, heads=2, width=32, hidden=64),
    train=PriorLoopConfig(steps=STEPS, batch_size=64, ema_decay=0.98),
    optimizer=OptimizerConfig(
        learning_rate=4e-3, warmup_steps=20, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0
    ),
)


class Chain:
    """A stationary first-order Markov chain over codes, in raster order."""

    def __init__(self, seed: int):
        self.transitions = np.random.default_rng(seed).dirichlet(np.full(CODES, 0.3), CODES)
        power = np.linalg.matrix_power(self.transitions, 1000)
        self.stationary = power[0] / power[0].sum()

    @property
    def entropy(self) -> float:
        """Nats per token: H(start) once, then the entropy rate, over the length."""
        rate = sum(p * entropy(row) for p, row in zip(self.stationary, self.transitions, strict=True))
        return (entropy(self.stationary) + (LENGTH - 1) * rate) / LENGTH

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """int32 ``[count, LENGTH]``."""
        tokens = np.zeros((count, LENGTH), np.int32)
        tokens[:, 0] = rng.choice(CODES, count, p=self.stationary)
        limits = np.cumsum(self.transitions, axis=1)
        for place in range(1, LENGTH):
            above = rng.random((count, 1)) > limits[tokens[:, place - 1]]
            tokens[:, place] = np.minimum(above.sum(axis=1), CODES - 1)
        return tokens


def entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def learned(config: PriorTrainConfig, training: PriorRows, *validation: PriorRows) -> list[Evaluation]:
    """Trains on rows taken in turn; gives the metrics on each of the validation sets."""
    learner = PriorLearner(config)
    state = learner.initial()
    for step in range(config.train.steps):
        at = np.arange(step * 64, (step + 1) * 64) % len(training.tokens)
        state, _ = learner.step(step, state, training.take(at))
    assert learner.compilations == 1
    unigram = unigram_entropy(np.bincount(training.tokens.ravel(), minlength=CODES))
    return [
        make_prior_evaluation(learner.prior, learner.mesh, rows, 1024, unigram)(state.average)
        for rows in validation
    ]


def test_a_grammar_is_learned_up_to_its_entropy() -> None:
    chain, rng = Chain(0), np.random.default_rng(1)
    training, validation = (
        PriorRows(chain.sample(count, rng), np.full(count, -1, np.int32)) for count in (15_360, 4_096)
    )
    metrics = learned(CONFIG, training, validation)[0].metrics
    assert metrics["loss"] == pytest.approx(chain.entropy, rel=0.02)
    assert metrics["loss"] < 0.8 * metrics["unigram"]
    assert metrics["bits"] == pytest.approx(metrics["loss"] / math.log(2))
    assert metrics["unigram"] == pytest.approx(entropy(chain.stationary), rel=0.01)


def test_labels_tell_which_grammar_it_is() -> None:
    """With its label a chain costs its own entropy, without more: which chain it is has to be found out."""
    chains, rng = [Chain(0), Chain(5)], np.random.default_rng(1)

    def both(count: int) -> PriorRows:
        labels = np.arange(count, dtype=np.int32) % 2
        options = np.stack([chain.sample(count, rng) for chain in chains])
        return PriorRows(options[labels, np.arange(count)], labels)

    training, validation = both(15_360), both(4_096)
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, classes=2),
        objective=ObjectiveConfig(class_dropout=0.2),
    )
    unlabelled = validation._replace(labels=np.full(4_096, -1, np.int32))
    swapped = validation._replace(labels=1 - validation.labels)
    known, unknown, wrong = (
        found.metrics["loss"] for found in learned(config, training, validation, unlabelled, swapped)
    )
    expected = (chains[0].entropy + chains[1].entropy) / 2
    assert known == pytest.approx(expected, rel=0.02)
    assert known + 0.03 < unknown < wrong

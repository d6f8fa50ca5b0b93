"""A toy training of a codec: few shapes of weights, so that little is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy_codec import TOY_IN_TRAINING
from vqgan.discriminators import DiscriminatorConfig
from vqgan.training.codec.config import (
    AdversarialConfig,
    CodebookConfig,
    CodecTrainConfig,
    DataConfig,
    LossConfig,
)
from vqgan.training.codec.gradients import StepDraws
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.loop_config import LoopConfig, OptimizerConfig

TOY = CodecTrainConfig(
    model=TOY_IN_TRAINING,
    train=LoopConfig(steps=40, batch_size=4, ema_decay=0.9, seed=3),
    data=DataConfig(crop_size=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant"),
    loss=LossConfig(perceptual=0.0),
    codebook=CodebookConfig(autoencoder_steps=2, revive_every=3),
    adversarial=AdversarialConfig(start=4),
    discriminator=DiscriminatorConfig(channels=4, layers=1),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant"),
)

MakeLearner = Callable[..., CodecLearner]


@pytest.fixture(scope="session")
def toy() -> CodecTrainConfig:
    return TOY


@pytest.fixture(scope="session")
def make_learner() -> MakeLearner:
    """A learner of the toy, with sections of its configuration replaced."""

    def make(**sections: Any) -> CodecLearner:
        config = dataclasses.replace(TOY, **sections)
        return CodecLearner(config, None)

    return make


@pytest.fixture(scope="session")
def learner(make_learner: MakeLearner) -> CodecLearner:
    """One for all tests, which compiles once."""
    return make_learner()


@pytest.fixture(scope="session")
def crops() -> np.ndarray:
    """uint8 ``[40, 4, 16, 16, 3]``: smooth, so that a toy can learn them."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(0, 255, (160, 4, 4, 3))
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8).reshape(40, 4, 16, 16, 3)


@pytest.fixture(scope="session")
def draws() -> StepDraws:
    return StepDraws(jax.random.key(0), jnp.ones(()))

"""A toy run of stage 1: few shapes of weights, so that little is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.config import ModelConfig
from vqgan.discriminators import DiscriminatorConfig
from vqgan.training.config import LoopConfig, OptimizerConfig
from vqgan.training.generator import Draws
from vqgan.training.loop import Evaluation
from vqgan.training.tokenizer import TokenizerLearner
from vqgan.training.tokenizer_config import (
    AdversarialConfig,
    CodebookConfig,
    DataConfig,
    LossConfig,
    TokenizerConfig,
)

MODEL = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    z_channels=8, embed_dim=4, codebook_size=16, norm_groups=4,
)  # fmt: skip

TOY = TokenizerConfig(
    model=MODEL,
    train=LoopConfig(steps=40, batch_size=4, ema_decay=0.9, seed=3),
    data=DataConfig(crop_size=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant"),
    loss=LossConfig(perceptual=0.0),
    codebook=CodebookConfig(autoencoder_steps=2, revive_every=3),
    adversarial=AdversarialConfig(start=4),
    discriminator=DiscriminatorConfig(channels=4, layers=1),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant"),
)

MakeLearner = Callable[..., TokenizerLearner]


@pytest.fixture(scope="session")
def toy() -> TokenizerConfig:
    return TOY


@pytest.fixture(scope="session")
def make_learner() -> MakeLearner:
    """A learner of the toy, with sections of its configuration replaced."""

    def make(**sections: Any) -> TokenizerLearner:
        config = dataclasses.replace(TOY, **sections)
        return TokenizerLearner(config, None, lambda params: Evaluation({}, None), lambda *_: None)

    return make


@pytest.fixture(scope="session")
def learner(make_learner: MakeLearner) -> TokenizerLearner:
    """One for all tests, which compiles once."""
    return make_learner()


@pytest.fixture(scope="session")
def crops() -> np.ndarray:
    """uint8 ``[40, 4, 16, 16, 3]``: smooth, so that a toy can learn them."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(0, 255, (160, 4, 4, 3))
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8).reshape(40, 4, 16, 16, 3)


@pytest.fixture(scope="session")
def draws() -> Draws:
    return Draws(jax.random.key(0), jnp.ones(()))

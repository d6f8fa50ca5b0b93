"""Every quantizer in a few steps of training."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from vqgan.training.codec.config import CodecTrainConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"quantizer": "ema"},
        {"quantizer": "cosine"},
        {"quantizer": "gumbel"},
        {"quantizer": "fsq", "embed_dim": 2, "fsq_levels": (4, 4)},
        {"quantizer": "lfq"},
    ],
    ids=lambda changes: changes["quantizer"],
)
def test_every_quantizer_learns(
    make_learner: Any, toy: CodecTrainConfig, crops: np.ndarray, changes: dict[str, Any]
) -> None:
    learner = make_learner(
        model=dataclasses.replace(toy.model, **changes),
        adversarial=dataclasses.replace(toy.adversarial, weight=0.0),
        codebook=dataclasses.replace(toy.codebook, autoencoder_steps=0),
        loss=dataclasses.replace(toy.loss, entropy=0.1 if changes["quantizer"] == "lfq" else 0.0),
        optimizer=dataclasses.replace(toy.optimizer, learning_rate=3e-3),
    )
    kernel, state, pixel = "encoder.encoder.conv_in.kernel", learner.initial(), []
    start = np.array(state.generator.params[kernel])
    for step in range(25):
        state, _ = learner.before_step(step, state, iter(crops))
        state, scalars = learner.step(step, state, crops[0])
        pixel.append(float(scalars["pixel"]))
    assert pixel[-1] < 0.8 * pixel[0]
    assert not np.array_equal(state.generator.params[kernel], start)

"""The small parts of training: modules taken apart, schedules, clustering, stopping, what is better."""

import dataclasses
import math
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.functional import take_apart
from vqgan.model.vqgan import VQGAN
from vqgan.training import codebook
from vqgan.training.best import HIGHER_IS_BETTER, is_better
from vqgan.training.config import OptimizerConfig
from vqgan.training.optimizers import make_optimizer, make_schedule
from vqgan.training.stopping import Stopping
from vqgan.training.tokenizer_config import TokenizerConfig

# Modules taken apart.


def test_bound_module_is_the_one_that_was_taken_apart(toy: TokenizerConfig) -> None:
    apart = take_apart(lambda: VQGAN(toy.model, rngs=nnx.Rngs(4)))
    params, others = apart.initial()
    assert others == {}
    again, _ = apart.values_of(apart.bind(params, others))
    assert params.keys() == again.keys()
    assert all(np.array_equal(params[name], again[name]) for name in params)
    assert {name.partition(".")[0] for name in params} == {"encoder", "quantizer", "decoder"}


def test_randomness_follows_from_the_key(toy: TokenizerConfig) -> None:
    noisy = dataclasses.replace(toy.model, dropout=0.5)
    apart = take_apart(lambda: VQGAN(noisy, rngs=nnx.Rngs(4)))
    params, others = apart.initial()

    @jax.jit
    def call(key: jax.Array) -> jax.Array:
        return apart.bind(params, others, key)(jnp.ones((1, 16, 16, 3))).images

    one, same, other = (np.asarray(call(jax.random.key(number))) for number in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_statistics_are_others_and_stay_in_the_copy() -> None:
    config = DiscriminatorConfig(channels=4, layers=1)
    apart = take_apart(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
    params, others = apart.initial()
    before = {name: np.array(value) for name, value in others.items()}
    assert any("mean" in name for name in others)
    bound: Any = apart.bind(params, others)
    bound(jax.random.normal(jax.random.key(0), (2, 16, 16, 3)))
    after = apart.values_of(bound)[1]
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    assert all(np.array_equal(others[name], before[name]) for name in before)


# Optimizers.


def test_schedule() -> None:
    cosine = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=10, final_share=0.1), 110)
    expected = [0.0, 1.0, 2.0, 0.2 + 1.8 * 0.5, 0.2]
    assert [float(cosine(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx(expected, rel=1e-5)
    constant = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=4, schedule="constant"), 100)
    assert [float(constant(step)) for step in (0, 2, 4, 99)] == pytest.approx([0.0, 1.0, 2.0, 2.0])


def test_warmup_takes_at_most_half_of_a_run() -> None:
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=1000), 10)
    assert float(schedule(5)) == pytest.approx(1.0)


def test_first_update_by_hand() -> None:
    """Adam's first step is the rate times the gradient's sign; a bias does not decay."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.full((1, 2), 2.0), "bias": jnp.full((2,), 2.0)}
    gradients = {"kernel": jnp.asarray([[3.0, -3.0]]), "bias": jnp.asarray([1.0, -1.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.1 - 0.1, 0.1 - 0.1]], atol=1e-5)
    np.testing.assert_allclose(updates["bias"], [-0.1, 0.1], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"), [("b1", 1.0), ("final_share", 2.0), ("clip_norm", -1.0), ("schedule", "linear")]
)
def test_wrong_optimizers(refused: Any, field: str, value: Any) -> None:
    with refused(f"optimizer: {field} is"):
        OptimizerConfig(**{field: value})


# The codebook.


def test_k_means_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.asarray([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    points = (centres.repeat(50, axis=0) + rng.normal(0, 0.1, (200, 2))).astype(np.float32)
    found = np.asarray(codebook.k_means(points, 4, rng, least_share=0.1, rounds=20))
    assert sorted(map(tuple, np.round(found).astype(int))) == [(0, 0), (0, 10), (10, 0), (10, 10)]


def test_k_means_round_by_hand() -> None:
    points = jnp.asarray([[0.0], [2.0], [9.0]])
    centres = jnp.asarray([[0.5], [8.0], [100.0]])
    found = codebook._lloyd_round(points, centres, jnp.asarray([[7.0], [7.0], [7.0]]), 0.0)
    assert np.ravel(found).tolist() == [1.0, 9.0, 7.0]  # an empty cluster starts anew


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.floats(0, 0.99))
def test_unused_codes(usage: list[int], share: float) -> None:
    found = np.asarray(codebook.unused_codes(jnp.asarray(usage), share))
    bound = np.float32(share) * np.mean(np.asarray(usage, np.float32))
    clear = np.abs(np.asarray(usage) - bound) > 1e-3
    assert (found == (np.asarray(usage) <= bound))[clear].all()
    assert not found.all() or max(usage) == 0


def test_random_latents_are_latents() -> None:
    latents = jnp.arange(24, dtype=jnp.float32).reshape(2, 2, 2, 3)
    drawn = np.asarray(codebook.random_latents(latents, 50, jax.random.key(0)))
    rows = {tuple(row) for row in np.asarray(latents).reshape(-1, 3).tolist()}
    assert {tuple(row) for row in drawn.tolist()} == rows


# What is better, and stopping.


def test_better() -> None:
    assert is_better("psnr", 21.0, 20.0)
    assert not is_better("psnr", 20.0, 21.0)
    assert is_better("lpips", 0.1, 0.2)
    assert not is_better("lpips", 0.2, 0.1)
    assert is_better("loss", 1.0, 2.0)
    for name in HIGHER_IS_BETTER:
        assert is_better(name, 1.0, None)
        assert not is_better(name, 1.0, 1.0)
        assert not is_better(name, math.nan, None)
        assert not is_better(name, math.inf, 1.0)


def test_second_signal_acts_as_usual() -> None:
    # A shell that runs tests in the background has them ignore SIGINT.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        assert stopping.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, former)

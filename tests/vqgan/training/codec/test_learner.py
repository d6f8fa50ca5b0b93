"""Updates of a codec: who changes what, when, and that they can be stopped, cut and spread."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.training.checkpoints import Checkpoints
from vqgan.training.codec.config import CodecTrainConfig
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.state import CodecTrainState, Phase, StepDraws
from vqgan.training.loop_config import OptimizerConfig

ADVERSARIAL_STEP = 10


def advance(learner: CodecLearner, state: CodecTrainState, crops: np.ndarray, steps: range) -> Any:
    """The state after some steps, and the scalars of each."""
    scalars = []
    for step in steps:
        state, _ = learner.before_step(step, state, iter(crops[step:]))
        state, values = learner.step(step, state, crops[step])
        scalars.append({name: float(value) for name, value in values.items()})
    return state, scalars


def copied(state: CodecTrainState) -> CodecTrainState:
    """A step gives its state's memory back: tests that go on from it keep a copy."""
    return jax.tree.map(jnp.copy, state)


def same(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in leaves)


@pytest.fixture(scope="module")
def trained(learner: CodecLearner, crops: np.ndarray) -> tuple[CodecTrainState, list[dict[str, float]]]:
    """After twelve steps, the last eight of them with a discriminator."""
    return advance(learner, learner.initial(), crops, range(12))


def test_phases(learner: CodecLearner) -> None:
    assert [learner.phase(step) for step in (0, 1, 2, 3, 4)] == [
        Phase(False, False), Phase(False, False), Phase(True, False), Phase(True, False), Phase(True, True),
    ]  # fmt: skip


def test_scalars_of_each_phase(trained: Any) -> None:
    scalars = trained[1]
    assert "quantizer" not in scalars[1]
    assert "quantizer" in scalars[2]
    assert "adversarial" not in scalars[3]
    assert {"adversarial", "discriminator", "adaptive_weight"} <= scalars[4].keys()
    assert all(np.isfinite(list(values.values())).all() for values in scalars)


def test_one_compilation_for_each_phase(learner: CodecLearner, trained: Any, crops: np.ndarray) -> None:
    state = copied(trained[0])  # which may compile copies
    state, _ = advance(learner, state, crops, range(12, 13))
    compiled: list[str] = []

    def listen(name: str, seconds: float, **_: Any) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        advance(learner, state, crops, range(13, 18))
        assert not compiled, "steps, a revival among them, compiled something anew"
        jax.jit(lambda x: x * 12345)(1.0)
        assert compiled, "the listener hears nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert learner.compilations == 3


def test_discriminator_waits_for_its_start(learner: CodecLearner, crops: np.ndarray) -> None:
    start = copied(learner.initial())
    state, _ = advance(learner, learner.initial(), crops, range(4))
    assert same(state.discriminator, start.discriminator)
    assert not same(state.generator.params, start.generator.params)
    state, _ = advance(learner, state, crops, range(4, 5))
    assert not same(state.discriminator.params, start.discriminator.params)


@pytest.mark.parametrize("frozen", ["optimizer", "discriminator_optimizer"])
def test_each_side_changes_itself_alone(
    make_learner: Any, learner: CodecLearner, trained: Any, crops: np.ndarray, frozen: str
) -> None:
    """With one side's rate near 0 that side stands still, and the other's update is the same to the bit."""
    still = OptimizerConfig(learning_rate=1e-30, warmup_steps=0, schedule="constant")
    usual, _ = learner.step(ADVERSARIAL_STEP, copied(trained[0]), crops[0])
    slow, _ = make_learner(**{frozen: still}).step(ADVERSARIAL_STEP, copied(trained[0]), crops[0])
    sides = ("generator", "discriminator") if frozen == "optimizer" else ("discriminator", "generator")
    stands, moves = (getattr(slow, side).params for side in sides)
    assert same(stands, getattr(trained[0], sides[0]).params)
    assert same(moves, getattr(usual, sides[1]).params)
    assert not same(moves, getattr(trained[0], sides[1]).params)


def test_batch_with_a_broken_loss_is_skipped(
    learner: CodecLearner, trained: Any, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = copied(trained[0])
    poisoned = state.generator.params | {
        "decoder.decoder.conv_out.bias": jnp.full((3,), jnp.nan, jnp.float32)
    }
    state = state._replace(generator=state.generator._replace(params=poisoned))
    before = copied(state)
    after, scalars = learner.step(ADVERSARIAL_STEP, state, crops[0])
    after, scalars = learner.step(ADVERSARIAL_STEP + 1, after, crops[1])
    assert (int(scalars["skipped"]), int(scalars["skipped_in_row"])) == (2, 2)
    assert same(after.discriminator, before.discriminator)
    assert same(after.generator.average, before.generator.average)
    assert same(after.generator.optimizer, before.generator.optimizer)
    healed = after._replace(generator=after.generator._replace(params=copied(trained[0]).generator.params))
    _, scalars = learner.step(ADVERSARIAL_STEP + 2, healed, crops[2])
    assert (int(scalars["skipped"]), int(scalars["skipped_in_row"])) == (2, 0)


def test_resumed_to_the_bit(learner: CodecLearner, trained: Any, crops: np.ndarray, tmp_path: Path) -> None:
    whole, _ = advance(learner, copied(trained[0]), crops, range(12, 15))
    store = Checkpoints(tmp_path, keep=1)
    store.save(12, trained[0], {})
    restored, _ = store.restore(12, learner.initial())
    store.close()
    assert same(restored, trained[0])
    resumed, _ = advance(learner, restored, crops, range(12, 15))
    assert same(resumed, whole)


def test_checkpoint_of_another_architecture(
    make_learner: Any, toy: CodecTrainConfig, trained: Any, tmp_path: Path, refused: Any
) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(12, trained[0], {})
    wider = make_learner(model=dataclasses.replace(toy.model, ch=16))
    with refused("does not fit this configuration"):
        store.restore(12, wider.initial())
    store.close()


def test_average_of_weights(
    make_learner: Any, learner: CodecLearner, trained: Any, crops: np.ndarray
) -> None:
    before = copied(trained[0])
    after, _ = learner.step(ADVERSARIAL_STEP, copied(trained[0]), crops[0])
    decay = min(0.9, (1 + 12) / (10 + 12))  # twelve updates are done
    name = "decoder.decoder.conv_in.kernel"
    expected = decay * before.generator.average[name] + (1 - decay) * after.generator.params[name]
    np.testing.assert_allclose(after.generator.average[name], expected, rtol=1e-5, atol=1e-7)


def test_codebook_is_placed_on_latents(learner: CodecLearner, crops: np.ndarray) -> None:
    state, _ = advance(learner, learner.initial(), crops, range(2))
    taken = iter(crops[2:])
    placed, event = learner.before_step(2, copied(state), taken)
    assert event == "codebook placed"
    codes = np.asarray(placed.generator.params["quantizer.codebook"])
    assert same(placed.generator.average["quantizer.codebook"], codes)
    model = learner.vqgan.bind(state.generator.params, {})
    batch = jnp.asarray(crops[2:].reshape(-1, 16, 16, 3), jnp.float32) * (2 / 255) - 1
    latents = np.asarray(model.encoder(batch)).reshape(-1, 4)
    gaps = np.linalg.norm(latents[:, None] - codes[None], axis=-1)
    assert len(np.unique(gaps.argmin(axis=1))) == 16
    unplaced = np.asarray(state.generator.params["quantizer.codebook"])
    before = np.linalg.norm(latents[:, None] - unplaced[None], axis=-1)
    assert gaps.min(axis=1).mean() < 0.6 * before.min(axis=1).mean()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [2]),
        ({"place_again": 0.5}, [2, 20]),
        ({"place_again": 0.05}, [2]),  # as it begins
        ({"autoencoder_steps": 0, "place_again": 0.8}, [32]),
        ({"autoencoder_steps": 0, "keep_tokens": True, "place_again": 0.8}, []),
    ],
    ids=str,
)
def test_when_all_codes_are_placed(
    settings: dict[str, Any], steps: list[int], make_learner: Any, toy: CodecTrainConfig
) -> None:
    learner = make_learner(codebook=dataclasses.replace(toy.codebook, **settings))
    assert [step for step in range(toy.train.steps) if learner._codebook.is_placement(step)] == steps


def test_unused_codes_move_onto_latents(learner: CodecLearner, trained: Any, crops: np.ndarray) -> None:
    state = copied(trained[0])
    usage = jnp.asarray([100] * 12 + [0, 1, 5, 100], jnp.int32)
    state = state._replace(generator=state.generator._replace(usage=usage))
    revived, event = learner.before_step(17, copied(state), iter(crops[17:]))  # 2 + 5 * 3
    assert event is None
    moved = np.any(
        np.asarray(revived.generator.params["quantizer.codebook"])
        != np.asarray(state.generator.params["quantizer.codebook"]), axis=1,
    )  # fmt: skip
    assert moved.tolist() == [False] * 12 + [True, True, True, False]  # at most 0.1 of the mean, 81.6
    assert not np.any(revived.generator.usage)
    for name in ("params", "average"):
        codes = np.asarray(getattr(revived.generator, name)["quantizer.codebook"])[12:15]
        model = learner.vqgan.bind(state.generator.params, {})
        latents = model.encoder(jnp.asarray(crops[17], jnp.float32) * (2 / 255) - 1)
        gaps = np.linalg.norm(np.asarray(latents).reshape(-1, 1, 4) - codes[None], axis=-1).min(axis=0)
        np.testing.assert_allclose(gaps, 0, atol=1e-5)


def test_unused_codes_do_not_share_a_latent(make_learner: Any, toy: CodecTrainConfig) -> None:
    """Of more unused codes than a batch has latents, as many move as there are places; the others wait."""
    model = dataclasses.replace(toy.model, codebook_size=1024)
    large = make_learner(model=model)
    state = large.initial().generator
    batch = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    places = 4 * (16 // model.downsampling) ** 2
    assert places < 900
    usage = jnp.zeros(1024, jnp.int32).at[:124].set(100)
    before = np.asarray(state.params["quantizer.codebook"])
    revived = large._codebook.revive(state._replace(usage=usage), batch, jax.random.key(0))
    after = np.asarray(revived.params["quantizer.codebook"])
    moved = np.flatnonzero(np.any(before != after, axis=1))
    assert moved.tolist() == list(range(124, 124 + places))
    assert len(np.unique(after[moved], axis=0)) == places


def test_no_revival_late_in_the_run(learner: CodecLearner, trained: Any, crops: np.ndarray) -> None:
    for step in (16, 35):  # not due; due, but in the last fifth
        batches = iter(crops)
        state, _ = learner.before_step(step, trained[0], batches)
        assert same(state, trained[0])
        assert np.array_equal(next(batches), crops[0])


def test_parts_of_a_batch_give_its_gradient(
    make_learner: Any, toy: CodecTrainConfig, learner: CodecLearner, crops: np.ndarray
) -> None:
    """Without a discriminator, whose batch statistics are those of a part."""
    halves = make_learner(train=dataclasses.replace(toy.train, accumulate=2))
    start = learner.initial()
    one, whole = learner.step(2, copied(start), crops[0])
    two, parts = halves.step(2, copied(start), crops[0])
    for name in ("pixel", "gradient_norm", "quantizer"):
        assert float(parts[name]) == pytest.approx(float(whole[name]), rel=1e-4), name
    assert same(one.generator.usage, two.generator.usage)
    name = "encoder.encoder.conv_in.kernel"
    mean = [np.asarray(state.generator.optimizer[1][0].mu[name]) for state in (one, two)]
    np.testing.assert_allclose(mean[1], mean[0], rtol=1e-3, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(
    make_learner: Any, toy: CodecTrainConfig, learner: CodecLearner, crops: np.ndarray
) -> None:
    again = make_learner(train=dataclasses.replace(toy.train, remat=True))
    start = learner.initial()
    one, plain = learner.step(2, copied(start), crops[0])
    _, saved = again.step(2, copied(start), crops[0])
    assert float(saved["gradient_norm"]) == pytest.approx(float(plain["gradient_norm"]), rel=1e-5)
    text = str(jax.make_jaxpr(lambda s: again._update(s, (None, None), jnp.asarray(crops[0]), _draws(again),
                                                      phase=Phase(True, False)))(start))  # fmt: skip
    assert "remat" in text or "checkpoint" in text
    del one


def _draws(learner: CodecLearner) -> Any:
    return StepDraws(learner._key(0), jnp.ones(()))


def test_bfloat16_keeps_parameters_and_quantizer_in_float32(
    make_learner: Any, toy: CodecTrainConfig, learner: CodecLearner, crops: np.ndarray
) -> None:
    half = make_learner(train=dataclasses.replace(toy.train, dtype="bfloat16"))
    start = learner.initial()
    _, exact = learner.step(2, copied(start), crops[0])
    state, rough = half.step(2, copied(start), crops[0])
    assert all(leaf.dtype == jnp.float32 for leaf in state.generator.params.values())
    assert float(rough["pixel"]) == pytest.approx(float(exact["pixel"]), rel=0.05)
    assert float(rough["pixel"]) != float(exact["pixel"])


def test_gumbel_temperature_falls_on_a_cosine(make_learner: Any, toy: CodecTrainConfig) -> None:
    settings = dataclasses.replace(
        toy.codebook, start_temperature=1.0, final_temperature=0.5, temperature_steps=10
    )
    learner = make_learner(codebook=settings)
    assert [learner._temperature(step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.75, 0.5, 0.5])

"""Schedules and optimizers, by hand; a batch in parts; skipped steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.training.loop_config import OptimizerConfig
from vqgan.training.optimizers import (
    accumulate,
    make_optimizer,
    make_schedule,
    skip_if_not_finite,
    update_average,
)


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


def test_parts_are_averaged_by_weight_and_rows_keep_their_order() -> None:
    batch = {"x": jnp.arange(12.0).reshape(6, 2)}

    def part(rows: Any, index: jax.Array) -> Any:
        assert rows["x"].shape == (2, 2)
        return jnp.mean(rows["x"]), {"kept": rows["x"], "part": jnp.full((2,), index)}, index + 1.0

    mean, kept = jax.jit(lambda batch: accumulate(part, batch, 3))(batch)
    means = [np.mean(np.arange(12.0).reshape(6, 2)[number::3]) for number in range(3)]
    assert float(mean) == pytest.approx(np.average(means, weights=[1, 2, 3]))
    np.testing.assert_array_equal(kept["kept"], batch["x"])
    np.testing.assert_array_equal(kept["part"], [0, 1, 2, 0, 1, 2])
    assert kept["part"].shape == (6,)


class Counted(NamedTuple):
    value: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def test_skipped_steps_are_counted_and_change_nothing_else() -> None:
    old = Counted(jnp.asarray(1.0), jnp.asarray(2), jnp.asarray(1))
    new = old._replace(value=jnp.asarray(5.0))
    good = skip_if_not_finite((jnp.asarray(3.0), jnp.asarray(0.0)), new, old)
    assert tuple(map(float, good)) == (5.0, 2.0, 0.0)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        kept = skip_if_not_finite((jnp.asarray(3.0), jnp.asarray(bad)), new, old)
        assert tuple(map(float, kept)) == (1.0, 3.0, 2.0)


def test_average_with_and_without_decay() -> None:
    params, average = {"w": jnp.asarray(10.0)}, {"w": jnp.asarray(0.0)}
    assert update_average({}, params, jnp.asarray(0), 0.9) == {}
    assert update_average(average, params, jnp.asarray(0), 0.0) is params
    early = update_average(average, params, jnp.asarray(0), 0.9)["w"]
    assert float(early) == pytest.approx(9.0)  # decay 1 / 10
    late = update_average(average, params, jnp.asarray(10_000), 0.9)["w"]
    assert float(late) == pytest.approx(1.0)


def test_clipping_may_be_set_when_a_run_goes_on() -> None:
    """The state that a checkpoint holds has the same structure without it."""
    params = {"a": jnp.ones((2, 2))}
    states = [make_optimizer(OptimizerConfig(clip_norm=norm), 10).init(params) for norm in (0.0, 1.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])

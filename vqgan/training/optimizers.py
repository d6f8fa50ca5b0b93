"""What every update is made of: optimizer, gradients of a batch in parts, moving average, skipping.

All functions here run inside a compiled step but the two that make the optimizer.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from vqgan.functional import Arrays
from vqgan.training.loop_config import OptimizerConfig

A = TypeVar("A")
K = TypeVar("K")
S = TypeVar("S")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Builds the learning rate by update, for a run of ``steps`` updates."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, steps // 2)
    if config.schedule == "constant":
        rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, 1), peak * config.final_share)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds Adam with warm-up, a schedule, clipping and weight decay, for a run of ``steps`` updates."""
    # Something always stands here: clipping may be set or dropped between a run and its continuation, whose
    # state must have the same structure.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        # Matrices and kernels decay; biases, scales and the like do not.
        mask=lambda params: jax.tree.map(lambda value: value.ndim > 1, params),
    )
    return optax.chain(clip, adam)


def apply_gradients(
    optimizer: optax.GradientTransformation, gradients: Arrays, state: Any, params: Arrays
) -> tuple[Arrays, Any]:
    """Returns parameters and the optimizer's state after one update."""
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def accumulate(
    part: Callable[[Any, jax.Array], tuple[A, K, jax.Array | None]], batch: Any, parts: int
) -> tuple[A, K]:
    """Works through a batch in parts, one after the other, to save memory.

    Args:
      part: some rows and their ordinal among the parts to values that are averaged over the parts
        (gradients, scalars), values ``[b, ...]`` that are kept of each row, and the weight of the part; None
        where all count the same.
      batch: pytree of arrays ``[B, ...]``.
      parts: a divisor of B; 1 calls ``part`` once, on the whole batch.

    Returns:
      The weighted means, and what was kept ``[B, ...]``, in the order of the rows.
    """
    if parts == 1:
        return part(batch, jnp.zeros((), jnp.int32))[:2]
    # Every device keeps its rows: part i takes each parts-th one.
    cut = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)

    def weighted(rows: Any, index: jax.Array) -> tuple[Any, K]:
        values, kept, weight = part(rows, index)
        if weight is not None:
            values = jax.tree.map(lambda leaf: leaf * weight, values)
        return (values, weight), kept

    def one(sums: Any, rows_and_index: tuple[Any, jax.Array]) -> tuple[Any, K]:
        values, kept = weighted(*rows_and_index)
        return jax.tree.map(jnp.add, sums, values), kept

    first = jax.tree.map(lambda leaf: leaf[0], cut)
    shapes, _ = jax.eval_shape(weighted, first, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (sums, weight), stacked = jax.lax.scan(one, zeros, (cut, jnp.arange(parts)))
    means = jax.tree.map(lambda leaf: leaf / (parts if weight is None else weight), sums)
    # (parts, b, ...) back to (B, ...), as the rows were cut
    return means, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), stacked)


def update_average(average: Arrays, params: Arrays, updates: jax.Array, decay: float) -> Arrays:
    """Returns the exponential moving average of parameters after an update.

    It follows closely at first (as TensorFlow's ExponentialMovingAverage may): the decay is at most
    ``(1 + n) / (10 + n)`` after n updates.

    Args:
      average: before it; an empty one stays empty.
      params: after the update.
      updates: done before this one, int32.
      decay: 0 gives the parameters themselves.
    """
    if not average:
        return average
    if not decay:
        return params
    return optax.incremental_update(
        params, average, 1 - jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    )


def skip_if_not_finite(values: Iterable[jax.Array], new: S, old: S) -> S:
    """Returns the state after a step, or the one before it where a loss or gradient was not finite.

    Args:
      values: scalars that must be finite.
      new: the state after the update, a named tuple; its fields ``skipped`` and ``skipped_in_row`` are set
        here.
      old: the state before.
    """
    after: Any = new
    before: Any = old
    finite = jnp.isfinite(sum(values, start=jnp.zeros(())))
    good = after._replace(skipped=before.skipped, skipped_in_row=jnp.zeros((), jnp.int32))
    kept = before._replace(skipped=before.skipped + 1, skipped_in_row=before.skipped_in_row + 1)
    chosen: S = jax.tree.map(lambda a, b: jnp.where(finite, a, b), good, kept)
    return chosen

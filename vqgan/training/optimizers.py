"""Optimizers of both stages: Adam with warm-up, a schedule, clipping and weight decay."""

import jax
import optax

from vqgan.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by update, for a run of ``steps`` updates."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, steps // 2)
    if config.schedule == "constant":
        rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, 1), peak * config.final_share)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of ``steps`` updates."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    adam = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    return optax.chain(*clip, adam)


def _decayed(params: optax.Params) -> optax.Params:
    """Matrices and kernels decay; biases, scales and the like do not."""
    return jax.tree.map(lambda value: value.ndim > 1, params)

"""Configuration that the training of codecs and of priors share: frozen dataclasses.

Only the standard library is imported here, so that a launcher can check a configuration.
"""

import dataclasses
import math
from typing import Any

from vqgan.errors import UserError

DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
HIGHER_IS_BETTER = {
    "psnr": True,
    "perplexity": True,
    "used_codes": True,
    "l1": False,
    "lpips": False,
    "loss": False,
    "bits": False,
}
"""Metrics that a run can choose its best model by."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What the training of codecs and of priors have alike: lengths, intervals, precision.

    Attributes:
      steps: optimizer updates.
      batch_size: examples per update, over all devices.
      accumulate: parts that a batch is worked through in, one after the other, to save memory.
      seed: of weights, data order and all random draws.
      dtype: type of activations; parameters, quantizer and losses stay float32.
      remat: gradient checkpointing: the model's blocks are computed again in the backward pass.
      ema_decay: decay of the averaged weights that are evaluated and exported; 0 for none.
      log_every: steps between entries of the log.
      evaluate_every: steps between evaluations on the validation data.
      save_every: steps between checkpoints; one is also written at the end and at SIGTERM. While steps are
        skipped none is written: the first good step after them is followed by one.
      keep: checkpoints that are kept, the newest.
      best: metric of the evaluation by which the best model is chosen: ``psnr``, ``lpips``, ``l1``,
        ``perplexity`` or ``used_codes`` of a codec, ``loss`` or ``bits`` of a prior.
      patience: evaluations in a row without a better ``best`` after which the run ends; 0 for all steps.
      cpu_devices: equal parts of a batch that a processor computes side by side, as if it were so many
        devices, or fewer where they do not divide the batch; None for as many as JAX has. Results of another
        number differ in their last bits.
      max_skipped: consecutive steps with a loss or gradient that is not finite, after which the run stops.
    """

    steps: int = 100_000
    batch_size: int = 32
    accumulate: int = 1
    seed: int = 0
    dtype: str = "float32"
    remat: bool = False
    ema_decay: float = 0.999
    log_every: int = 50
    evaluate_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    best: str = "psnr"
    patience: int = 0
    cpu_devices: int | None = None
    max_skipped: int = 20

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch_size", "accumulate", "log_every", "evaluate_every", "save_every")
        check_least("train", self, at_least_one, 1)
        check_least("train", self, ("keep", "max_skipped"), 1)
        check_choice("train", self, "dtype", DTYPES)
        check_least("train", self, ("seed", "patience"), 0)
        if self.cpu_devices is not None:
            check_least("train", self, ("cpu_devices",), 1)
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay is {self.ema_decay}: it must lie in [0, 1)")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.accumulate is {self.accumulate}: it must divide train.batch_size, {self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of one optimizer.

    Attributes:
      learning_rate: peak rate.
      warmup_steps: linear rise from 0; at most half of the run is used.
      schedule: after the rise, ``cosine`` down to ``final_share`` of the peak, or ``constant``.
      final_share: share of the peak that the cosine ends in.
      b1: Adam's decay of the mean.
      b2: Adam's decay of the mean square.
      weight_decay: decoupled decay (AdamW, arXiv 1711.05101) of tensors with two axes or more.
      clip_norm: ceiling of the global gradient norm; 0 for none.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 100
    schedule: str = "cosine"
    final_share: float = 0.0
    b1: float = 0.5
    b2: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"optimizer: learning_rate is {self.learning_rate}: it must be above 0")
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer: schedule is {self.schedule!r}: give one of {', '.join(SCHEDULES)}")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer: {name} is {getattr(self, name)}: it must not be negative")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer: {name} is {getattr(self, name)}: it must lie in [0, 1)")
        if not 0 <= self.final_share <= 1:
            raise UserError(f"optimizer: final_share is {self.final_share}: it must lie in [0, 1]")


def check_best_metric(name: str) -> None:
    """Raises a UserError for a name that is no known metric."""
    if name not in HIGHER_IS_BETTER:
        raise UserError(f"train.best is {name!r}: give one of {', '.join(sorted(HIGHER_IS_BETTER))}")


def is_better(name: str, value: float, than: float | None) -> bool:
    """Returns whether ``value`` of a metric is strictly better; finite beats None, NaN beats nothing."""
    if not math.isfinite(value):
        return False
    if than is None:
        return True
    return value > than if HIGHER_IS_BETTER[name] else value < than


def check_least(section: str, config: Any, names: tuple[str, ...], least: int) -> None:
    """Raises a UserError where one of the named fields is below ``least`` or not finite."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise UserError(f"{section}.{name} is {value}: it must be at least {least}")


def check_choice(section: str, config: Any, name: str, known: tuple[str, ...]) -> None:
    """Raises a UserError where a field is none of the known values."""
    if getattr(config, name) not in known:
        raise UserError(f"{section}.{name} is {getattr(config, name)!r}: give one of {', '.join(known)}")

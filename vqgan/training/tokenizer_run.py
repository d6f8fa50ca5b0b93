"""A whole run of stage 1 in a folder: configuration, losses' weights, loop, codec, report."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.checkpoint import PARTS, Weights, load_weights, read_info, save_codec
from vqgan.config import ModelConfig, to_dict
from vqgan.errors import UserError
from vqgan.lpips import Lpips, load_lpips
from vqgan.model import VQGAN
from vqgan.training.checkpoints import check_same_run
from vqgan.training.functional import Arrays, take_apart
from vqgan.training.logs import ProgressLine
from vqgan.training.loop import Batches, Loop, Outcome
from vqgan.training.report import write_report
from vqgan.training.state import TokenizerState
from vqgan.training.stopping import Stopping
from vqgan.training.tokenizer import TokenizerLearner, build_vqgan
from vqgan.training.tokenizer_config import LossConfig, TokenizerConfig
from vqgan.training.validating import make_evaluate

FREE = frozenset(
    f"train.{name}" for name in ("steps", "log_every", "evaluate_every", "save_every", "keep", "max_skipped")
) | {"data.threads", "data.cache_mib", "data.max_rejects"}
"""Fields that may change when a run goes on: they decide on no update, but for the schedule's length."""


@dataclasses.dataclass(frozen=True)
class TokenizerRun:
    """What a run of stage 1 needs beside its data.

    Attributes:
      config: everything that decides on the result.
      folder: of the run: ``config.json``, ``checkpoints/``, ``codec/`` (the best one), ``metrics.jsonl``,
        ``tensorboard/``, ``sheets/``, ``report.html``.
      init: codec to start from, of the same architecture.
      card: what the codec's card says beside configuration and figures.
      quiet: print errors only.
      wandb_project: also log to Weights & Biases.
    """

    config: TokenizerConfig
    folder: Path
    init: str | None = None
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quiet: bool = False
    wandb_project: str | None = None


def train(run: TokenizerRun, batches: Batches, validation: np.ndarray) -> Outcome[TokenizerState]:
    """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

    Args:
      run: configuration and folder.
      batches: uint8 ``[B, S, S, 3]`` crops.
      validation: uint8 ``[N, S, S, 3]`` held-back pictures, perhaps none.

    Raises:
      UserError: weights that are not to be had, a folder of another run, a loss that is not finite, or
        a place that cannot be written to.
    """
    config = run.config
    perceptual = load_perceptual(config.loss)
    initial = None if run.init is None else initial_params(run.init, config.model)
    check_same_run(run.folder, {**to_dict(config), "init": run.init}, FREE)
    started = time.monotonic()
    vqgan = take_apart(functools.partial(build_vqgan, config))
    learner = TokenizerLearner(
        config,
        perceptual,
        make_evaluate(vqgan, config.model, perceptual, validation),
        functools.partial(_export, run, started, len(validation)),
        initial,
    )
    progress = ProgressLine(quiet=run.quiet)
    logs = {"quiet": run.quiet, "wandb_project": run.wandb_project}
    with Stopping() as stopping:
        outcome = Loop(learner, batches, config.train, run.folder, progress, logs).run(stopping)
    write_report(run.folder)
    return outcome


def load_perceptual(config: LossConfig) -> Lpips | None:
    """Weights of LPIPS, or None where the loss does without.

    Raises:
      UserError: they cannot be had.
    """
    if not config.perceptual:
        return None
    heads, backbone = config.perceptual_heads, config.perceptual_backbone
    try:
        return load_lpips("alex" if config.perceptual_network == "alex" else "vgg", heads, backbone)
    except UserError as error:
        raise UserError(f"{error}; or train without LPIPS: --set loss.perceptual=0") from error


def initial_params(codec: str, config: ModelConfig) -> Arrays:
    """Parameters of a codec to start from.

    Raises:
      UserError: it is of another architecture, or has numbers that are not finite.
    """
    info = read_info(codec)
    before, now = to_dict(info.config), to_dict(config)
    differing = [name for name in now if before[name] != now[name] and name not in ("dropout", "resolution")]
    if differing:
        listed = ", ".join(f"{name} is {before[name]!r} there, {now[name]!r} here" for name in differing)
        raise UserError(f"--init {codec}: another architecture ({listed})")
    weights = load_weights(info, PARTS)
    params = {f"{part}.{name}": value for part in PARTS for name, value in weights[part].items()}
    broken = [name for name, value in params.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(
            f"--init {codec}: {broken[0]} has values that are not finite; start from another codec"
        )
    return {name: jnp.asarray(value) for name, value in params.items()}


def split_parts(params: Arrays) -> dict[str, Weights]:
    """Parameters of a model as :func:`vqgan.checkpoint.save_codec` takes them."""
    host = jax.device_get(params)
    return {
        part: {
            name.removeprefix(f"{part}."): np.asarray(value, np.float32)
            for name, value in host.items()
            if name.startswith(f"{part}.")
        }
        for part in PARTS
    }


def _export(
    run: TokenizerRun, started: float, held_back: int, params: Arrays, step: int, figures: Mapping[str, float]
) -> None:
    """Puts the codec in its place, with its card."""
    del held_back
    card = {
        **run.card,
        "steps": step,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "training": {name: value for name, value in to_dict(run.config).items() if name != "model"},
        "metrics": dict(figures),
    }
    save_codec(run.folder / "codec", run.config.model, split_parts(params), card=card)


__all__ = ["VQGAN", "TokenizerRun", "initial_params", "load_perceptual", "split_parts", "train"]
